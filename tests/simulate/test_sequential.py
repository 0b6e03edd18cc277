"""Layer by layer, the quantized network is brought back to what the float network computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from infoq_onnx.emit.storage.narrow import narrow
from infoq_onnx.graph.session import open_session
from infoq_onnx.schema import Bits, Layer
from infoq_onnx.simulate.rounding import sequential as module
from infoq_onnx.simulate.rounding.as_matmul import form_of
from infoq_onnx.simulate.rounding.gather import Gathered
from infoq_onnx.simulate.rounding.sequential import round_sequential
from infoq_onnx.simulate.running.batching import logits_of
from infoq_onnx.simulate.running.streams import Stream
from infoq_onnx.simulate.simulation import layer_codes, simulation
from tests.networks import SMALL, Builder, residual_convnet
from tests.prepared import searched, small, spread_of
from tests.simulate.rounded import (
    assert_same,
    computed_bias,
    differ,
    error_of,
    fitted,
    left_constant,
    made,
    rounded,
    rows_for_a_bias,
    tensors_of,
    watch,
    without_biases,
)

# -------------------------------------------------------------------------------------------------------- the whole net


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("weights", "activations", "share"), [(3, 8, 0.85), (4, 4, 0.95)])
def test_computes_better_than_nearest_codes(name: str, weights: int, activations: int, share: float) -> None:
    of = fitted(name)
    bits = of.uniform(weights, activations)
    assert error_of(of, bits, rounded(of, bits)) < share * error_of(of, bits, None)


@pytest.mark.parametrize("name", ["residual", "concat", "batchnorm"])
def test_convolutions_lose_a_fraction(name: str) -> None:
    of = fitted(name)
    bits = of.uniform(3, 8)
    assert error_of(of, bits, rounded(of, bits)) < 0.2 * error_of(of, bits, None)


@pytest.mark.parametrize("name", SMALL)
def test_codes_are_of_the_kind_that_nearest_ones_are(name: str) -> None:
    of = small(name)
    bits = of.mixed(seed=3)
    nearest, found = layer_codes(of.quantizable, bits), rounded(of, bits)
    assert list(nearest) == list(found)
    axes = {layer.name: int(layer.channel_axis or 0) for layer in of.network.layers}
    for layer, codes in found.items():
        # raises where they do not fit
        narrow(codes.rounded, axes[layer])
        assert np.all(codes.scales > 0)
        for name in ("weight", "scales", "bias", "bias_scales"):
            one, other = getattr(codes, name), getattr(nearest[layer], name)
            assert (one is None) == (other is None)
            if one is not None:
                assert (one.shape, one.dtype) == (other.shape, other.dtype)


@pytest.mark.parametrize("name", ["residual", "attention"])
def test_twice_is_the_same(name: str) -> None:
    of = small(name)
    assert_same(rounded(of, of.mixed(seed=1)), rounded(of, of.mixed(seed=1)))


def test_progress_is_told() -> None:
    of = small("mlp")
    told: list[tuple[str, int, int]] = []
    round_sequential(
        of.quantizable,
        of.uniform(4, 4),
        of.dataset,
        lambda layer, done, total: told.append((layer, done, total)),
    )
    assert told == [("fc1", 0, 3), ("fc2", 1, 3), ("fc3", 2, 3), ("", 3, 3)]


# ---------------------------------------------------------------------------------------------------------- one by one


def node_called(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


@pytest.mark.parametrize(
    ("name", "shortcuts"),
    [
        ("residual", {"a2": "a_add", "b_short": "b_add"}),
        ("depthwise", {"project1": "add"}),
        ("concat", {}),
    ],
)
def test_targets_are_float_outputs_and_float_sums(
    name: str, shortcuts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written out: of a layer in front of a residual Add, the float sum less the quantized shortcut."""
    of = small(name)
    bits = of.uniform(4, 4)
    seen = watch(monkeypatch)
    model = simulation(of.quantizable, bits, codes=rounded(of, bits))
    for layer in of.network.layers:
        wanted, sources = layer.output, [node_called(model, layer.name).input[0]]
        if layer.name in shortcuts:
            add = node_called(of.graph.model, shortcuts[layer.name])
            wanted, side = add.output[0], 1 - list(add.input).index(layer.output)
            sources.append(node_called(model, add.name).input[side])
        target = tensors_of(of, of.graph.model, [wanted], integer=True)[0]
        values = tensors_of(of, model, sources, integer=False)
        if layer.name in shortcuts:
            target -= values[1]
        form, found = form_of(of.graph, layer), seen[layer.name].all(centred=True)
        assert form is not None
        x, t = form.columns(values[0]).astype(np.float64), form.outputs(target).astype(np.float64)
        np.testing.assert_allclose(found.input_mean, x.mean(axis=1), atol=1e-4)
        np.testing.assert_allclose(found.target_mean, t.mean(axis=1), atol=1e-4)
        x, t = x - x.mean(axis=1, keepdims=True), t - t.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(found.second, x.transpose(0, 2, 1) @ x / x.shape[1], atol=1e-3)
        np.testing.assert_allclose(found.cross, t.transpose(0, 2, 1) @ x / x.shape[1], atol=1e-3)


def two_readers(b: Builder, y: str) -> str:
    return b.op("Add", [b.op("Add", [y, "stem_out"], "sum"), y], "again")


def with_itself(b: Builder, y: str) -> str:
    return b.op("Add", [y, y], "sum")


def with_a_constant(b: Builder, y: str) -> str:
    return b.op("Add", [y, b.normal("shift", 1, 4, 1, 1)], "sum")


def with_what_comes_later(b: Builder, y: str) -> str:
    return b.op("Add", [y, b.op("Tanh", [b.conv("stem_out", "later", 4, 4)], "tanh")], "sum")


def with_what_is_broadcast(b: Builder, y: str) -> str:
    return b.op("Add", [y, "pooled_out"], "sum")


def behind_an_activation(b: Builder, y: str) -> str:
    return b.op("Add", [b.relu(y, "relu"), "stem_out"], "sum")


def a_product(b: Builder, y: str) -> str:
    return b.op("Mul", [y, "stem_out"], "sum")


def a_sum(b: Builder, y: str) -> str:
    return b.op("Add", ["stem_out", y], "sum")


def the_image(b: Builder, y: str) -> str:
    return b.op("Add", [y, "x"], "sum")


def summed(end: Callable[[Builder, str], str]) -> onnx.ModelProto:
    b = Builder()
    stem = b.conv("x", "stem", 4, 4)
    b.op("GlobalAveragePool", [stem], "pooled")
    y = end(b, b.conv(stem, "branch", 4, 4))
    return b.model(b.classifier(b.op("Add", [y, "pooled_out"], "last"), 4, 5), (4, 6, 6), (5,))


@pytest.mark.parametrize(
    ("end", "found"),
    [
        (a_sum, True),
        (the_image, True),
        (two_readers, False),
        (with_itself, False),
        (with_a_constant, False),
        (with_what_comes_later, False),
        (with_what_is_broadcast, False),
        (behind_an_activation, False),
        (a_product, False),
    ],
)
def test_which_sums_are_targets(end: Callable[[Builder, str], str], found: bool) -> None:
    graph, network, _ = searched(summed(end))
    layer = next(layer for layer in network.layers if layer.name == "branch")
    shortcut = module._shortcut(graph, layer)
    assert (shortcut is not None) == found
    if shortcut is not None:
        assert shortcut.name == "sum"


def test_a_branch_mends_what_its_shortcut_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    of = made(summed(a_sum), 64, (3, 4))
    weights, activations = of.uniform(4, 8)
    bits = Bits({**weights, "stem": 3}, activations)
    exact = tensors_of(of, of.graph.model, ["sum_out"], integer=True)[0]

    def error() -> float:
        model = simulation(of.quantizable, bits, codes=rounded(of, bits))
        return spread_of(tensors_of(of, model, ["sum_out"], integer=False)[0] - exact, exact)

    aware = error()
    monkeypatch.setattr(module, "_shortcut", lambda graph, layer: None)  # noqa: ARG005
    assert aware < 0.95 * error()


def test_an_output_of_the_network_is_itself_a_target() -> None:
    model = summed(a_sum)
    model.graph.output.append(helper.make_tensor_value_info("branch_out", TensorProto.FLOAT, ["batch", 4, 6, 6]))
    graph, network, _ = searched(model)
    assert module._shortcut(graph, next(layer for layer in network.layers if layer.name == "branch")) is None


# ---------------------------------------------------------------------------------------------- layers of other kinds


def test_transposed_convolutions_keep_their_nearest_codes() -> None:
    of = small("batchnorm")
    bits = of.uniform(3, 4)
    nearest, found = layer_codes(of.quantizable, bits)["up"], rounded(of, bits)["up"]
    assert_same({"up": nearest}, {"up": found})


@pytest.mark.parametrize("network", [left_constant, rows_for_a_bias, computed_bias])
def test_layers_that_are_no_plain_product_keep_their_nearest_codes(network: Callable[[], onnx.ModelProto]) -> None:
    of = made(network(), 32)
    bits = of.uniform(4, 4)
    nearest, found = layer_codes(of.quantizable, bits), rounded(of, bits)
    assert_same({"left": nearest["left"]}, {"left": found["left"]})
    assert differ(nearest, found)


def test_without_biases() -> None:
    of = made(without_biases(), 64, (3,))
    bits = of.uniform(3, 8)
    codes = rounded(of, bits)
    assert all(held.bias is None for held in codes.values())
    assert error_of(of, bits, codes) < 0.8 * error_of(of, bits, None)


def test_a_pruned_channel_keeps_its_bias() -> None:
    """Its target does not vary, and neither may its bias drown in a scale that is fitted to noise."""
    model = residual_convnet()
    for tensor in model.graph.initializer:
        if tensor.name in ("a1_w", "a1_b"):
            values = numpy_helper.to_array(tensor).copy()
            values[2] = 0.0 if tensor.name == "a1_w" else 0.7
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    of = made(model, 32)
    held = rounded(of, of.uniform(4, 8))["a1"]
    assert held.bias is not None
    assert held.bias_scales is not None
    assert not held.weight[2].any()
    assert held.bias[2] * held.bias_scales[2] == pytest.approx(0.7, abs=0.01)


def test_a_dead_layer_is_no_obstacle() -> None:
    """Behind a Relu that never opens all inputs are 0, and what follows does not vary at all."""
    model = residual_convnet()
    for tensor in model.graph.initializer:
        if tensor.name == "stem_b":
            tensor.CopyFrom(numpy_helper.from_array(np.full(8, -99, np.float32), tensor.name))
    of = made(model, 16)
    codes = rounded(of, of.uniform(4, 4))
    assert all(np.isfinite(held.scales).all() for held in codes.values())
    # constant logits have no spread of their own
    expected = logits_of(open_session(of.graph.model), of.graph, of.dataset, 16)
    simulated = simulation(of.quantizable, of.uniform(4, 4), codes=codes)
    found = logits_of(open_session(simulated, integer_kernels=False), of.graph, of.dataset, 16)
    np.testing.assert_allclose(found, expected, atol=0.2)


@pytest.mark.parametrize(("name", "behind"), [("depthwise", {"stem", "dw1", "dw2"}), ("residual", set())])
def test_means_behind_activations_are_for_depthwise_layers(
    name: str, behind: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And for those in front of them: others mend a shift by themselves when their turn comes."""
    of = small(name)
    seen: dict[str, bool] = {}
    inner = module.gather

    def keep(reference: Stream, student: Stream, layer: Layer, *given: Any) -> Gathered:
        found = inner(reference, student, layer, *given)
        seen[layer.name] = found.clipped is not None
        return found

    monkeypatch.setattr(module, "gather", keep)
    rounded(of, of.uniform(4, 8))
    assert {layer for layer, kept in seen.items() if kept} == behind
