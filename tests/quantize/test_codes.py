"""The file of rounded weights: what is written is read, the same table is the same bytes, and damage is noticed."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from infoq_onnx.errors import AnalysisError
from infoq_onnx.quantize.codes import CodeTable, Keeper, RoundedWeight, load_codes, save_codes
from tests.prepared import is_one_line, small
from tests.quantize.archives import assert_damaged, replaced


def held(shape: tuple[int, ...], bits: int, bias: bool, seed: int = 0) -> RoundedWeight:
    random = np.random.default_rng(seed)
    return RoundedWeight(
        random.integers(-128, 128, shape).astype(np.int8),
        random.uniform(1e-30, 1, shape[0]).astype(np.float32),
        bits,
        random.integers(-9, 1, shape[0]).astype(np.int8) if bits < 5 else None,
        random.standard_normal(shape[0]) if bias else None,
    )


def table() -> CodeTable:
    return {
        "block/conv": {8: held((4, 3, 3, 3), 8, True), 2: held((4, 3, 3, 3), 2, True, 1)},
        "größe_1": {3: held((5, 7), 3, False, 2)},
        "codes_0": {2: held((1, 1), 2, True, 3), 8: held((1, 1), 8, True, 4)},
    }


def assert_equal(found: CodeTable, expected: CodeTable) -> None:
    assert list(found) == list(expected)
    for layer, widths in expected.items():
        assert list(found[layer]) == list(widths)
        for bits, one in widths.items():
            other = found[layer][bits]
            assert (other.codes.dtype, other.scales.dtype) == (np.int8, np.float32)
            np.testing.assert_array_equal(other.codes, one.codes)
            np.testing.assert_array_equal(other.scales, one.scales)
            assert other.bits == one.bits == bits
            assert (other.origins is None) == (one.origins is None)
            if one.origins is not None and other.origins is not None:
                assert other.origins.dtype == np.int8
                np.testing.assert_array_equal(other.origins, one.origins)
            assert (other.bias is None) == (one.bias is None)
            if one.bias is not None and other.bias is not None:
                assert other.bias.dtype == np.float64
                np.testing.assert_array_equal(other.bias, one.bias)


@pytest.mark.parametrize("original", [table(), {}], ids=["three", "empty"])
def test_round_trip(original: CodeTable, tmp_path: Path) -> None:
    save_codes(original, tmp_path / "codes.npz")
    assert_equal(load_codes(tmp_path / "codes.npz"), original)


def test_a_table_is_of_one_analysis(tmp_path: Path) -> None:
    path = tmp_path / "codes.npz"
    save_codes(table(), path, "this")
    assert_equal(load_codes(path), table())
    assert_equal(load_codes(path, analysis="this"), table())
    with pytest.raises(AnalysisError, match="another analysis") as caught:
        load_codes(path, analysis="that")
    assert is_one_line(caught.value)


def test_a_growing_table_is_kept_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("infoq_onnx.quantize.codes.time.monotonic", lambda: now[0])
    keep, path = Keeper(tmp_path / "codes.npz", "this"), tmp_path / "codes.npz"
    keep(table())
    assert not path.exists()
    now[0] += 5
    keep(table())
    assert_equal(load_codes(path, analysis="this"), table())
    path.unlink()
    now[0] += 4
    keep(table())
    assert not path.exists()


def test_the_same_table_is_the_same_bytes(tmp_path: Path) -> None:
    save_codes(table(), tmp_path / "a.npz")
    save_codes(table(), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        # no clock in the file
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError) as caught:
        load_codes(tmp_path / "codes.npz")
    assert is_one_line(caught.value, "codes.npz", "run analyze again")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_not_an_archive(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "codes.npz"
    path.write_bytes(content)
    with pytest.raises(AnalysisError) as caught:
        load_codes(path)
    assert is_one_line(caught.value, "codes.npz", "run analyze again")


@pytest.mark.parametrize("lacking", ["layers", "bits", "codes_1", "scales_4"])
def test_an_archive_that_lacks_an_array(lacking: str, tmp_path: Path) -> None:
    path = tmp_path / "codes.npz"
    save_codes(table(), path)
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files if name != lacking}
    np.savez(path, **arrays)
    with pytest.raises(AnalysisError) as caught:
        load_codes(path)
    assert is_one_line(caught.value, "codes.npz", "run analyze again")


@pytest.mark.parametrize("bias", [False, True])
def test_damage_is_noticed_wherever_it_is(bias: bool, tmp_path: Path) -> None:
    """Every fifth byte changed, and the file cut there: refused, or (in fields nobody reads) without effect."""
    path = tmp_path / "codes.npz"
    original = {"conv": {2: held((4, 3, 3, 3), 2, bias), 8: held((4, 3, 3, 3), 8, bias, 1)}}
    save_codes(original, path)
    whole = path.read_bytes()
    for position in range(0, len(whole), 5):
        for content in (whole[:position], whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]):
            path.write_bytes(content)
            with contextlib.suppress(AnalysisError):
                assert_equal(load_codes(path), original)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("codes_0", np.zeros((4, 3, 3, 3), np.int16)),
        ("codes_0", np.full((4, 3, 3, 3), np.nan)),
        *[("scales_0", np.full(4, bad, np.float32)) for bad in (np.nan, np.inf, 0, -1)],
        ("scales_0", np.float32(1)),
        ("scales_0", np.ones((4, 1), np.float32)),
        ("scales_0", np.ones(4)),
        *[("bias_0", np.full(4, bad)) for bad in (np.nan, np.inf)],
        ("bias_0", np.zeros(3)),
        ("origins_1", np.zeros(3, np.int8)),
        ("origins_1", np.zeros(4, np.int64)),
        ("bits", np.array([8, 2, 3, 2, 9])),
        ("bits", np.array([8.0, 2.5, 3.0, 2.0, 8.0])),
        ("bits", np.int64(8)),
        ("biased", np.array([True])),
        ("layers", np.array(["one"])),
    ],
)
def test_values_that_are_no_codes_are_refused(name: str, value: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "codes.npz"
    save_codes(table(), path)
    replaced(path, name, value)
    assert_damaged(path, load_codes)


def test_codes_of_other_layers_are_refused(tmp_path: Path) -> None:
    network, path = small("residual").network, tmp_path / "codes.npz"
    layer = network.layers[0]
    shape = (layer.weight_shape[0], layer.weight_shape[1] + 1, *layer.weight_shape[2:])
    save_codes({layer.name: {8: held(shape, 8, False)}}, path)
    load_codes(path)
    with pytest.raises(AnalysisError, match=f"codes of {layer.name}: int8 of shape"):
        load_codes(path, network)
