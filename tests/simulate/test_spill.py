"""Arrays in files, and streams that keep what they keep there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoq_onnx.errors import OutputError
from infoq_onnx.simulate.rounding.sequential import round_sequential
from infoq_onnx.simulate.running import streams
from infoq_onnx.simulate.running.spill import Filed, Spill
from tests.networks import SMALL
from tests.prepared import is_one_line, small


@settings(max_examples=50)
@given(count=st.integers(1, 20), inner=st.lists(st.integers(1, 4), max_size=3), step=st.integers(1, 7))
def test_what_is_read_is_what_was_written(
    count: int, inner: list[int], step: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = np.random.default_rng(0).standard_normal((count, *inner)).astype(np.float32)
    filed = Filed(values.shape, tmp_path_factory.getbasetemp())
    for start in range(0, count, step):
        filed[start : start + step] = values[start : start + step]
    for start in range(0, count, step + 1):
        np.testing.assert_array_equal(filed[start : start + step + 1], values[start : start + step + 1])


def test_the_file_has_no_name(tmp_path: Path) -> None:
    filed = Filed((4, 3), tmp_path)
    filed[0:4] = np.ones((4, 3), np.float32).T.copy().T
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(filed[1:3], np.ones((2, 3)))


def test_no_room(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        Filed((4, 3), tmp_path / "none")
    assert is_one_line(caught.value, "none", "`memory`")
    filed = Filed((4, 3), tmp_path)
    with Path("/dev/full").open("wb+", buffering=0) as full:
        filed._file = full  # type: ignore[assignment]
        with pytest.raises(OutputError) as caught:
            filed[0:4] = np.ones((4, 3), np.float32)
    assert is_one_line(caught.value, str(tmp_path), "No space left")


@pytest.mark.parametrize("name", SMALL)
def test_where_it_is_kept_changes_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = small(name)
    made: list[tuple[int, ...]] = []

    class Counted(Filed):
        def __init__(self, shape: tuple[int, ...], folder: Path) -> None:
            made.append(shape)
            super().__init__(shape, folder)

    monkeypatch.setattr(streams, "Filed", Counted)
    arguments = (of.quantizable, of.uniform(3, 8), of.dataset, lambda *_: None)
    before = round_sequential(*arguments)
    assert not made
    after = round_sequential(*arguments, Spill(tmp_path, 0))
    assert made
    for layer, codes in before.items():
        np.testing.assert_array_equal(codes.weight, after[layer].weight)
        np.testing.assert_array_equal(codes.scales, after[layer].scales)
    filed = len(made)
    round_sequential(*arguments, Spill(tmp_path, 2**40))
    assert len(made) == filed
