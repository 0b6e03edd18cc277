"""The file of grids: what is written is read, the same table is the same bytes, and damage is noticed."""

from __future__ import annotations

import contextlib
import dataclasses
import zipfile
from pathlib import Path

import numpy as np
import pytest

from infoq_onnx.errors import AnalysisError
from infoq_onnx.quantize.table import GridTable, load_table, save_table
from infoq_onnx.schema import Quantizer
from tests.prepared import is_one_line, small
from tests.quantize.archives import assert_damaged, replaced


def table() -> GridTable:
    return GridTable(
        {
            "block/relu": {8: Quantizer(8, float(np.float32(0.1)), 3), 2: Quantizer(2, 1e-30, 0)},
            "größe": {8: Quantizer(8, 0.25, 255)},
        },
        {
            "conv_1": {8: np.linspace(0.01, 1, 40, dtype=np.float32), 3: np.ones(5, np.float32)},
            "weight_2": {2: np.array([np.finfo(np.float32).tiny], dtype=np.float32)},
        },
    )


def assert_equal(found: GridTable, expected: GridTable) -> None:
    assert found.activations == expected.activations
    assert list(found.activations) == list(expected.activations)
    assert list(found.weights) == list(expected.weights)
    for layer, scales in expected.weights.items():
        assert found.weights[layer].keys() == scales.keys()
        for bits, values in scales.items():
            assert found.weights[layer][bits].dtype == np.float32
            np.testing.assert_array_equal(found.weights[layer][bits], values)


@pytest.mark.parametrize("original", [table(), GridTable({}, {})], ids=["two", "empty"])
def test_round_trip(original: GridTable, tmp_path: Path) -> None:
    save_table(original, tmp_path / "ranges.npz")
    assert_equal(load_table(tmp_path / "ranges.npz"), original)


def test_round_trip_of_a_calibrated_network(tmp_path: Path) -> None:
    original = small("mlp").table
    save_table(original, tmp_path / "ranges.npz")
    assert_equal(load_table(tmp_path / "ranges.npz"), original)


def test_the_same_table_is_the_same_bytes(tmp_path: Path) -> None:
    save_table(table(), tmp_path / "a.npz")
    save_table(table(), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        # no clock in the file
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError) as caught:
        load_table(tmp_path / "ranges.npz")
    assert is_one_line(caught.value, "ranges.npz", "run analyze again")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_not_an_archive(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ranges.npz"
    path.write_bytes(content)
    with pytest.raises(AnalysisError) as caught:
        load_table(path)
    assert is_one_line(caught.value, "ranges.npz")


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    np.savez(tmp_path / "ranges.npz", x=np.zeros(3))
    with pytest.raises(AnalysisError):
        load_table(tmp_path / "ranges.npz")


def test_damage_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    """Every seventh byte changed, and the file cut there: refused, or (in fields nobody reads) without effect."""
    path = tmp_path / "ranges.npz"
    save_table(table(), path)
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        for content in (whole[:position], whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]):
            path.write_bytes(content)
            with contextlib.suppress(AnalysisError):
                assert_equal(load_table(path), table())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("activations", np.array([row], np.float64)) for row in (
            (0, 8, np.nan, 3), (0, 8, np.inf, 3), (0, 8, -0.1, 3), (0, 8, 0.0, 3), (0, 8, 0.1, 256), (0, 8, 0.1, -1),
            (0, 8, 0.1, 2.5), (0, 9, 0.1, 3), (0, 2.5, 0.1, 3), (0, 4, 0.1, 16), (-1, 8, 0.1, 3), (2, 8, 0.1, 3),
            (0.5, 8, 0.1, 3), (0, 8, 0.1),
        )],
        ("activations", np.float64(1)),
        ("activations", np.zeros((0, 4), np.complex128)),
        ("widths", np.array([[-1, 8]])),
        ("widths", np.array([[2, 8]])),
        ("widths", np.array([[0, 1]])),
        ("widths", np.array([0, 8])),
        ("widths", np.array([[0.0, 8.0]])),
        *[("weight_0_8", np.full(40, bad, np.float32)) for bad in (np.nan, np.inf, 0, -1)],
        ("weight_0_8", np.float32(1)),
        ("weight_0_8", np.ones((1, 40), np.float32)),
        ("weight_0_8", np.ones(40)),
        *[("factors_0", np.full(4, bad, np.float32)) for bad in (np.nan, np.inf, 0, -1)],
        ("factors_0", np.array(["a", "b"])),
        ("tensors", np.array(["one"])),
    ],
)  # fmt: skip
def test_values_that_are_no_grids_are_refused(name: str, value: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "ranges.npz"
    save_table(dataclasses.replace(table(), factors={"größe": np.ones(4, np.float32)}), path)
    replaced(path, name, value)
    assert_damaged(path, load_table)


def test_grids_of_other_layers_are_refused(tmp_path: Path) -> None:
    network, path = small("residual").network, tmp_path / "ranges.npz"
    layer = network.layers[0]
    save_table(GridTable({}, {layer.name: {8: np.ones(layer.weight_shape[0] + 1, np.float32)}}), path)
    load_table(path)
    with pytest.raises(AnalysisError, match=f"scales of {layer.name}: float32 of shape"):
        load_table(path, network)
