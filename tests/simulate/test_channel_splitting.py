"""Outlier channel splitting: another network with the same outputs, in which no channel dwarfs all others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax

from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.network import find_network
from infoq_onnx.graph.session import open_session
from infoq_onnx.schema import Bits, Network, Split
from infoq_onnx.simulate.equalization.channel_splitting import (
    LARGEST_SHARE,
    LEAST_GAIN,
    find_splits,
    parts_of,
    split,
    splittable,
)
from infoq_onnx.simulate.quantizers.calibrate import calibrate
from infoq_onnx.simulate.quantizers.placement import place
from infoq_onnx.simulate.quantizers.quantizable import Quantizable
from infoq_onnx.simulate.running.batching import logits_of
from infoq_onnx.simulate.simulation import simulation
from tests.networks import SMALL, Builder
from tests.peaked import HIDDEN, LARGE, scaled, tokens, vectors
from tests.prepared import dataset_of, images, searched

Float32 = npt.NDArray[np.float32]


def logits(graph: Graph, values: Float32) -> Float32:
    return logits_of(open_session(graph.model), graph, dataset_of(values), 16)


def made(model: onnx.ModelProto, values: Float32) -> tuple[Graph, Network, tuple[Split, ...], Graph]:
    graph, network, placement = searched(model)
    found = find_splits(graph, network, placement, dataset_of(values), lambda _: None)
    return graph, network, found, split(graph, network, found)


@pytest.mark.parametrize(("model", "shape"), [(vectors(), (12,)), (tokens(), (7, 12))], ids=["vectors", "tokens"])
def test_a_large_channel_is_read_in_parts(model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    values = images(shape, 64)
    graph, network, found, after = made(model, values)
    # a 32nd of 256 channels are 8 more columns: 8 parts are 7 more, 16 parts would be 15
    assert found == (Split("elu_out", LARGE, 8),)
    readers = [layer for layer in find_network(after).layers if layer.name in ("two", "left", "right")]
    assert [layer.groups for layer in readers] == [("elu_out_parts",)] * len(readers)
    assert [layer.parameters for layer in readers] == [16 * (HIDDEN + 7)] * len(readers)
    others = [layer for layer in network.layers if layer.name not in ("two", "left", "right")]
    assert others == [layer for layer in find_network(after).layers if layer not in readers]
    np.testing.assert_allclose(logits(after, values), logits(graph, values), rtol=1e-4, atol=1e-4)
    onnx.checker.check_model(after.model, full_check=True)


def test_eight_bits_lose_less() -> None:
    values, others = images((12,), 400), images((12,), 200, seed=2)
    graph, _, _, after = made(vectors(), values)
    exact = log_softmax(logits(graph, others).astype(np.float64), axis=1)

    def divergence(of: Graph) -> float:
        network = find_network(of)
        placement = place(of, network)
        table = calibrate(of, network, placement, dataset_of(values), (8,), lambda _: None)
        bits = Bits({layer.name: 8 for layer in network.layers}, {group.name: 8 for group in network.groups})
        simulated = Graph(simulation(Quantizable(of, network, placement, table), bits))
        found = log_softmax(logits(simulated, others).astype(np.float64), axis=1)
        return float(np.mean(np.sum(np.exp(exact) * (exact - found), axis=1)))

    assert divergence(after) < 0.2 * divergence(graph)


def test_several_channels_and_tensors() -> None:
    b = Builder()
    y = b.op("Elu", [b.gemm("x", "one", 12, HIDDEN)], "elu")
    y = b.op("Elu", [b.gemm(y, "two", HIDDEN, HIDDEN)], "behind")
    model = scaled(b.model(b.gemm(y, "three", HIDDEN, 5), (12,), (5,)), "one_w", {3: 40.0, 90: 40.0}, 0)
    values = images((12,), 64)
    graph, network, found, after = made(scaled(model, "two_w", {200: 40.0}, 0), values)
    assert [(one.tensor, one.channel) for one in found] == [("elu_out", 3), ("elu_out", 90), ("behind_out", 200)]
    np.testing.assert_allclose(logits(after, values), logits(graph, values), rtol=1e-4, atol=1e-4)
    # a second round finds nothing worth it any more
    network = find_network(after)
    assert find_splits(after, network, place(after, network), dataset_of(values), lambda _: None) == ()


def test_names_that_are_taken() -> None:
    graph, network, _ = searched(vectors())
    once = split(graph, network, [Split("elu_out", LARGE, 8)])
    network = find_network(once)
    twice = split(once, network, [Split("elu_out_parts", LARGE, 2)])
    names = [node.name for node in twice.nodes]
    assert len(set(names)) == len(names)
    np.testing.assert_allclose(logits(twice, images((12,))), logits(graph, images((12,))), rtol=1e-4, atol=1e-4)


def read_by_a_sum(b: Builder, y: str) -> str:
    return b.op("Add", [b.gemm(y, "two", HIDDEN, HIDDEN), y], "sum")


def multiplied_by_itself(b: Builder, y: str) -> str:
    column = b.op("Unsqueeze", [y, b.constant("two_axis", [2], np.int64)], "column")
    row = b.op("Unsqueeze", [y, b.constant("one_axis", [1], np.int64)], "row")
    return b.op("ReduceMean", [b.op("MatMul", [column, row], "two")], "mean", axes=[1], keepdims=0)


def read_from_the_right(b: Builder, y: str) -> str:
    # the constant is on the left
    column = b.op("Unsqueeze", [y, b.constant("two_axis", [2], np.int64)], "column")
    product = b.op("MatMul", [b.normal("two_w", HIDDEN, HIDDEN, fan_in=HIDDEN), column], "two")
    return b.op("Squeeze", [product, b.constant("last_axis", [2], np.int64)], "flat")


@pytest.mark.parametrize("reader", [read_by_a_sum, multiplied_by_itself, read_from_the_right])
def test_what_others_read_is_left_alone(reader: Callable[[Builder, str], str]) -> None:
    b = Builder()
    y = reader(b, b.op("Elu", [b.gemm("x", "one", 12, HIDDEN)], "elu"))
    model = b.model(b.gemm(b.op("Tanh", [y], "tanh"), "three", HIDDEN, 5), (12,), (5,))
    assert "elu_out" not in splittable(*searched(model))


def test_what_integer_kernels_make_is_left_alone() -> None:
    """An image, a pooled one, and what a Relu behind a convolution makes of it stay whole."""
    found = {name: splittable(*searched(make())) for name, make in SMALL.items()}
    convolutional = {name: tensors for name, tensors in found.items() if name not in ("attention", "mlp")}
    assert not any(convolutional.values())
    assert found["mlp"] == ["relu1_out", "relu2_out"]


def test_ordinary_channels_stay_whole() -> None:
    assert made(vectors({}), images((12,), 64))[2] == ()
    # two more bits for all others are worth it, one is not
    assert made(vectors({LARGE: 3.0}), images((12,), 64))[2] == ()


magnitudes = st.floats(0, 2.0**100, width=32)


@given(arrays(np.float32, st.integers(1, 400), elements=magnitudes))
def test_parts_are_powers_of_two_and_few(largest: Float32) -> None:
    parts = parts_of(largest)
    np.testing.assert_array_equal(parts & (parts - 1), 0)
    assert parts.min() >= 1
    assert parts.sum() - len(parts) <= LARGEST_SHARE * len(parts)
    left = (largest.astype(np.float64) / parts).max()
    assert np.all(parts == 1) or left <= float(largest.max()) / LEAST_GAIN


@pytest.mark.parametrize("value", [0.0, np.inf])
def test_nothing_to_go_by(value: float) -> None:
    np.testing.assert_array_equal(parts_of(np.full(200, value, np.float32)), 1)
