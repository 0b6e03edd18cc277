"""Objects in files that several processes map."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoq_onnx.errors import DataError
from infoq_onnx.execute.shared import load_shared, save_shared
from tests.prepared import is_one_line


@pytest.mark.parametrize("fortran", [False, True])
def test_what_is_mapped_already_is_not_copied(fortran: bool, tmp_path: Path) -> None:
    values = np.arange(600_000.0).reshape(1000, 600)
    np.save(tmp_path / "values.npy", np.asfortranarray(values) if fortran else values)
    mapped = np.lib.format.open_memmap(tmp_path / "values.npy", mode="r")
    save_shared([mapped, mapped[10:900]], tmp_path / "shared")
    whole, part = load_shared(tmp_path / "shared")
    np.testing.assert_array_equal(whole, values)
    np.testing.assert_array_equal(part, values[10:900])
    assert isinstance(whole, np.memmap)
    # a part of it is, as any array
    assert (tmp_path / "shared").stat().st_size < 1.1 * part.nbytes


def test_what_is_mapped_is_not_everywhere(tmp_path: Path) -> None:
    np.save(tmp_path / "values.npy", np.arange(10.0))
    save_shared(np.lib.format.open_memmap(tmp_path / "values.npy", mode="r"), tmp_path / "shared")
    (tmp_path / "values.npy").unlink()
    with pytest.raises(DataError) as caught:
        load_shared(tmp_path / "shared")
    assert is_one_line(caught.value, "values.npy", "No such file", "every machine")


@given(st.lists(st.integers(0, 300_000), max_size=4), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_what_is_loaded_is_what_was_saved(sizes: list[int], odd: int) -> None:
    random = np.random.default_rng(odd)
    value = {"arrays": [random.standard_normal(size) for size in sizes], "bytes": b"x" * odd, "text": "é"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "value"
        save_shared(value, path)
        found = load_shared(path)
        assert (found["bytes"], found["text"]) == (value["bytes"], value["text"])
        for before, after in zip(value["arrays"], found["arrays"], strict=True):
            np.testing.assert_array_equal(before, after)
            # only what is large is mapped
            assert after.flags.writeable == (before.nbytes < 1 << 20)
            assert after.ctypes.data % 8 == 0
