"""Layers that are rounded each by itself: on the float network's inputs, whatever becomes of other layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from infoq_onnx.emit.storage.narrow import narrow
from infoq_onnx.graph.operators import bounds_behind
from infoq_onnx.quantize.codes import CodeTable, RoundedWeight
from infoq_onnx.quantize.grid import dequantize_weight, quantize_weight
from infoq_onnx.quantize.im2col import to_rows
from infoq_onnx.schema import Layer
from infoq_onnx.simulate.rounding.as_matmul import Form, form_of, target_of
from infoq_onnx.simulate.rounding.layerwise import round_layerwise
from tests.networks import SMALL, residual_convnet
from tests.prepared import Ready, dataset_of, images, small, spread_of
from tests.simulate.rounded import (
    alone,
    computed_bias,
    fitted,
    left_constant,
    made,
    rows_for_a_bias,
    tensors_of,
    without_biases,
)


def assert_same(one: CodeTable, other: CodeTable) -> None:
    assert one.keys() == other.keys()
    for name, widths in one.items():
        for bits, held in widths.items():
            np.testing.assert_array_equal(held.codes, other[name][bits].codes)
            np.testing.assert_array_equal(held.scales, other[name][bits].scales)
            if held.bias is not None:
                np.testing.assert_array_equal(held.bias, other[name][bits].bias)


def computed(form: Form, layer: Layer, held: RoundedWeight, source: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """What a layer makes of an input, in the order of its columns."""
    assert layer.channel_axis is not None
    weight = to_rows(dequantize_weight(held.codes, held.scales, layer.channel_axis), layer.channel_axis, form.groups)
    found: npt.NDArray[np.float64] = form.columns(source) @ weight.transpose(0, 2, 1)
    return found if held.bias is None else found + held.bias.reshape(form.groups, 1, -1)


def to_nearest(of: Ready, layer: Layer, bits: int) -> RoundedWeight:
    assert layer.weight is not None
    assert layer.channel_axis is not None
    scales = of.table.weights[layer.name][bits]
    codes = quantize_weight(of.graph.constant(layer.weight), scales, bits, layer.channel_axis)
    return RoundedWeight(codes, scales, bits, bias=None if layer.bias is None else of.graph.constant(layer.bias))


def errors_of(of: Ready, bits: int) -> Iterator[tuple[Layer, float, float]]:
    """Yield each layer with the error of its output, rounded and to nearest, as a share of the output's deviation.

    Inputs are those of the float network, for images that nothing was fitted to.
    """
    table = alone(of, (bits,))
    held_out = dataclasses.replace(of, dataset=dataset_of(images(of.network.input_shape, 64, seed=9)))
    for layer in of.network.layers:
        form = form_of(of.graph, layer)
        if form is not None:
            source, target = tensors_of(
                held_out, of.graph.model, [layer.groups[0], target_of(of.graph, layer)], integer=True
            )
            outputs = form.outputs(target)
            one, other = (
                spread_of(computed(form, layer, held, source) - outputs, outputs)
                for held in (table[layer.name][bits], to_nearest(of, layer, bits))
            )
            yield layer, one, other


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("name", ["residual", "depthwise", "concat", "attention", "mlp", "batchnorm"])
def test_every_layer_computes_better_than_with_nearest_codes(name: str, bits: int) -> None:
    """But for the first, which reads white noise here: of that no code can make up for another."""
    of = fitted(name)
    for layer, rounded, nearest in errors_of(of, bits):
        assert rounded < (1.05 if layer.groups[0] == of.graph.input else 0.95) * nearest


def test_8_bits_are_next_to_exact() -> None:
    of = made(SMALL["residual"](), 64, (8,))
    assert all(rounded < 0.01 for _, rounded, _ in errors_of(of, 8))


@pytest.mark.parametrize("name", SMALL)
def test_codes_are_of_the_kind_that_nearest_ones_are(name: str) -> None:
    of = small(name)
    table = alone(of, (2, 5, 8))
    for layer in of.network.layers:
        assert (layer.name in table) == (form_of(of.graph, layer) is not None)
        for bits, held in table.get(layer.name, {}).items():
            nearest = to_nearest(of, layer, bits)
            # raises where they do not fit
            narrow(held, int(layer.channel_axis or 0))
            assert np.all(held.scales > 0)
            assert (held.codes.shape, held.codes.dtype) == (nearest.codes.shape, nearest.codes.dtype)
            assert (held.scales.shape, held.scales.dtype) == (nearest.scales.shape, nearest.scales.dtype)
            assert (held.bias is None) == (layer.bias is None)
            if held.bias is not None and nearest.bias is not None:
                assert held.bias.shape == nearest.bias.shape
        assert list(table.get(layer.name, {2: None, 5: None, 8: None})) == [2, 5, 8]


@pytest.mark.parametrize("name", ["residual", "attention"])
def test_no_width_knows_of_the_others(name: str) -> None:
    of = small(name)
    together = alone(of, (2, 3, 8))
    for bits in (2, 3, 8):
        assert_same(alone(of, (bits,)), {layer: {bits: widths[bits]} for layer, widths in together.items()})


def test_no_layer_knows_of_those_behind_it() -> None:
    model = residual_convnet()
    for tensor in model.graph.initializer:
        if tensor.name in ("b2_w", "fc_w"):
            noise = np.random.default_rng(5).standard_normal(tensor.dims).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(noise, tensor.name))
    one, other = alone(small("residual"), (2, 4)), alone(made(model, 48), (2, 4))
    before = ("stem", "a1", "a2", "b1", "b_short")
    assert_same({name: one[name] for name in before}, {name: other[name] for name in before})
    for name in ("b2", "fc"):
        assert not np.array_equal(one[name][4].codes, other[name][4].codes)


@pytest.mark.parametrize("name", ["residual", "batchnorm", "mlp"])
def test_biases_keep_the_mean_of_every_channel(name: str) -> None:
    of = small(name)
    table = alone(of, (2,))
    for layer in of.network.layers:
        form = form_of(of.graph, layer)
        if form is None or layer.bias is None:
            continue
        source, target = tensors_of(of, of.graph.model, [layer.groups[0], target_of(of.graph, layer)], integer=True)
        found, wanted = computed(form, layer, table[layer.name][2], source), form.outputs(target).astype(np.float64)
        bounds = bounds_behind(of.graph, target_of(of.graph, layer))
        if bounds is not None:
            # what is read is what comes out of the activation
            found, wanted = np.clip(found, *bounds), np.clip(wanted, *bounds)
        np.testing.assert_allclose(found.mean(axis=1), wanted.mean(axis=1), atol=1e-2)


def test_twice_is_the_same() -> None:
    of = small("depthwise")
    assert_same(alone(of, (2, 8)), alone(of, (2, 8)))


@pytest.mark.parametrize("network", [left_constant, rows_for_a_bias, computed_bias])
def test_layers_that_are_no_plain_product_are_left_out(network: Callable[[], onnx.ModelProto]) -> None:
    assert list(alone(made(network(), 32), (4,))) == ["fc"]


def test_without_biases_none_are_made() -> None:
    table = alone(made(without_biases(), 32), (3,))
    assert list(table) == ["one", "two", "fc"]
    assert all(widths[3].bias is None for widths in table.values())


def test_progress_is_told() -> None:
    of = small("mlp")
    told: list[tuple[str, int, int]] = []
    round_layerwise(
        of.graph, of.network, of.dataset, (4,), lambda layer, done, total: told.append((layer, done, total))
    )
    assert told == [("fc1", 0, 3), ("fc2", 1, 3), ("fc3", 2, 3), ("", 3, 3)]
