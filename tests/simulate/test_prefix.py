"""What lies in front of units: the same values in any order of asking, and the images are gone through once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from infoq_onnx.graph.extract import cut
from infoq_onnx.schema import tensor_of, units_of
from infoq_onnx.simulate.running.prefix import Prefix
from infoq_onnx.simulate.running.spill import Spill
from tests.networks import SMALL, residual_convnet
from tests.prepared import Ready, images, small
from tests.simulate.rounded import made, tensors_of

Tensors = dict[str, npt.NDArray[np.float32]]


def in_front(of: Ready, prefix: Prefix, unit: str) -> tuple[list[int], Tensors]:
    """Images of each batch, and the tensors of all of them."""
    tensors = cut(of.graph, [unit])
    counts, parts = zip(*prefix.batches(unit, tensors), strict=True)
    return list(counts), {name: np.concatenate([part[name] for part in parts]) for name in tensors}


def asked_in_order(of: Ready, prefix: Prefix) -> list[str]:
    """The tensor of each unit, in the order in which they are best asked for."""
    return sorted((tensor_of(of.network, unit) for unit in units_of(of.network)), key=prefix.position)


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", SMALL)
def test_what_the_whole_network_holds(name: str) -> None:
    of = small(name)
    prefix = Prefix(of.graph, of.network, of.dataset)
    for tensor in asked_in_order(of, prefix):
        _, found = in_front(of, prefix, tensor)
        expected = tensors_of(of, of.graph.model, list(found), integer=False)
        for values, wanted in zip(found.values(), expected, strict=True):
            np.testing.assert_allclose(values, wanted, atol=2e-5)


@pytest.mark.parametrize("name", ["residual", "concat", "attention", "fixed batch"])
def test_the_order_of_asking_changes_no_bit(name: str, tmp_path: Path) -> None:
    of = small(name)
    prefix = Prefix(of.graph, of.network, of.dataset)
    asked = asked_in_order(of, prefix)
    once = {tensor: in_front(of, prefix, tensor)[1] for tensor in asked}
    # as after a restart, or by a worker that has only a few of them, with little memory
    for tensor in asked[::-1]:
        filed = Prefix(of.graph, of.network, of.dataset, Spill(tmp_path, 0))
        assert same(in_front(of, prefix, tensor)[1], once[tensor])
        assert same(in_front(of, filed, tensor)[1], once[tensor])
    assert not list(tmp_path.iterdir())


def test_the_images_are_gone_through_once() -> None:
    of = small("residual")
    reads: list[int] = []

    def read(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        reads.append(int(positions[0]))
        return images((3, 16, 16))[positions]

    dataset = dataclasses.replace(of.dataset, _read=read)
    prefix = Prefix(of.graph, of.network, dataset)
    assert [prefix.position(name) for name in ("x", "stem_w", "a1_w", "a_relu_out", "fc_w")] == [0, 0, 1, 3, 6]
    for unit in ("stem_w", "x", "a1_w", "a2_w", "fc_w", "flatten_out"):
        in_front(of, prefix, unit)
    # twice for what the first layer reads, once to get behind it
    assert len(reads) == 3
    in_front(of, prefix, "a1_w")
    assert len(reads) == 4


def test_what_is_carried_at_most() -> None:
    of = small("residual")
    # behind the first layer: 8 channels of 16×16, for the residual branch and for the shortcut beside it
    widest = 4 * 8 * 16 * 16 * len(of.dataset)
    assert max(Prefix(of.graph, of.network, of.dataset).stored_bytes()) in {2 * widest, 4 * widest}


def test_the_last_batch_may_be_short() -> None:
    of = made(residual_convnet(batch=4, size=8), 10)
    counts, found = in_front(of, Prefix(of.graph, of.network, of.dataset), "a2_w")
    assert counts == [4, 4, 2]
    assert {len(values) for values in found.values()} == {10}
