"""The simulation against a network written out in plain numpy, quantizer by quantizer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from infoq_onnx.graph.ort import run_session
from infoq_onnx.graph.session import open_session
from infoq_onnx.quantize.codes import RoundedWeight
from infoq_onnx.quantize.grid import weight_code_limits
from infoq_onnx.schema import BITS, Bits, Quantizer
from infoq_onnx.simulate.running.batching import batch_size, logits_of
from infoq_onnx.simulate.simulation import layer_codes, simulation, with_bias
from tests.networks import SMALL
from tests.prepared import Ready, images, small, spread_of
from tests.simulate.rounded import alone, error_of, fitted

Array = npt.NDArray[np.float64]


def logits(of: Ready, bits: Bits) -> npt.NDArray[np.float32]:
    model = simulation(of.quantizable, bits)
    return logits_of(open_session(model, integer_kernels=False), of.graph, of.dataset, batch_size(of.graph))


# --------------------------------------------------------------------------------------------- the same, in plain numpy


def on_grid(values: Array, quantizer: Quantizer) -> Array:
    scaled = (values.astype(np.float32) / np.float32(quantizer.scale)).astype(np.float64)
    codes = np.clip(np.rint(scaled) + quantizer.zero_point, 0, 2**quantizer.bits - 1)
    return quantizer.scale * (codes - quantizer.zero_point)


def convolve(x: Array, weight: Array, bias: Array, stride: int) -> Array:
    """Convolve [N, C, H, W] with [O, C, k, k], padded by k // 2."""
    k = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True) + bias[None, :, None, None]


class Plain:
    """`residual_convnet`, quantized as its docstring and the rules of placement say."""

    def __init__(self, of: Ready, bits: Bits) -> None:
        self.of, (self.weight_bits, self.activation_bits) = of, bits

    def stored(self, tensor: str, values: Array) -> Array:
        return on_grid(values, self.of.table.activations[tensor][8])

    def seen(self, tensor: str, values: Array) -> Array:
        return on_grid(values, self.of.table.activations[tensor][self.activation_bits[tensor]])

    def constants(self, name: str, group: str) -> tuple[Array, Array]:
        layer = next(layer for layer in self.of.network.layers if layer.name == name)
        assert layer.weight is not None
        assert layer.bias is not None
        weight, bias = (self.of.graph.constant(tensor).astype(np.float64) for tensor in (layer.weight, layer.bias))
        bits = self.weight_bits[name]
        steps = self.of.table.weights[name][bits].astype(np.float64)
        low, high = weight_code_limits(bits)
        shaped = steps.reshape(-1, *[1] * (weight.ndim - 1))
        units = steps * self.of.table.activations[group][self.activation_bits[group]].scale
        return shaped * np.clip(np.rint(weight / shaped), low, high), units * np.rint(bias / units)

    def conv(self, name: str, group: str, x: Array, stride: int = 1) -> Array:
        return convolve(x, *self.constants(name, group), stride)

    def logits(self, x: Array) -> Array:
        seen, stored = self.seen, self.stored
        stem = stored("stem_relu_out", np.maximum(self.conv("stem", "x", seen("x", x)), 0))
        inner = self.conv("a1", "stem_relu_out", seen("stem_relu_out", stem))
        inner = seen("a1_relu_out", np.maximum(inner, 0))
        inner = stored("a2_out", self.conv("a2", "a1_relu_out", inner))
        block = seen("a_relu_out", np.maximum(inner + stem, 0))
        inner = seen("b1_relu_out", np.maximum(self.conv("b1", "a_relu_out", block, 2), 0))
        inner = stored("b2_out", self.conv("b2", "b1_relu_out", inner))
        short = stored("b_short_out", self.conv("b_short", "a_relu_out", block, 2))
        block = stored("b_relu_out", np.maximum(inner + short, 0))
        pooled = seen("flatten_out", stored("gap_out", block.mean(axis=(2, 3))))
        weight, bias = self.constants("fc", "flatten_out")
        return pooled @ weight.T + bias


@pytest.mark.parametrize("name", ["residual", "fixed batch"])
@pytest.mark.parametrize("case", ["8/8", "4/4", "2/2", "mixed"])
def test_equals_plain_numpy(name: str, case: str) -> None:
    of = small(name)
    bits = of.mixed(seed=5) if case == "mixed" else of.uniform(int(case[0]), int(case[-1]))
    expected = Plain(of, bits).logits(np.concatenate(list(of.dataset.batches(16))).astype(np.float64))
    # float32 sums may put a value that lies between two codes on the other side
    assert spread_of(logits(of, bits) - expected, expected) < 1e-3


# --------------------------------------------------------------------------------------------------------------- others


@pytest.mark.parametrize("name", SMALL)
def test_fewer_bits_are_further_from_the_float_network(name: str) -> None:
    of = small(name)
    exact = logits_of(open_session(of.graph.model), of.graph, of.dataset, batch_size(of.graph))
    errors = [spread_of(logits(of, of.uniform(bits, bits)) - exact, exact) for bits in (8, 6, 4, 2)]
    assert errors == sorted(errors)
    assert errors[0] < 0.05


@pytest.mark.parametrize("name", SMALL)
def test_codes_are_within_their_bits(name: str) -> None:
    of = small(name)
    bits = of.mixed(seed=1)
    codes = layer_codes(of.quantizable, bits)
    assert codes.keys() == bits[0].keys()
    for layer in of.network.layers:
        if layer.name not in codes:
            assert layer.weight is None
            continue
        held = codes[layer.name]
        low, high = weight_code_limits(bits[0][layer.name])
        assert held.weight.shape == layer.weight_shape
        assert low <= held.weight.min() <= held.weight.max() <= high
        assert layer.channel_axis is not None
        assert held.scales.shape == (layer.weight_shape[layer.channel_axis],)
        assert (held.bias is not None) == (layer.bias is not None)
        if held.bias is not None and held.bias_scales is not None:
            assert held.bias.dtype == np.int32
            assert held.bias.shape == held.bias_scales.shape


def test_biases_are_in_units_of_the_input_grid_that_was_chosen() -> None:
    of = small("mlp")
    by_bits = {bits: layer_codes(of.quantizable, of.uniform(8, bits))["fc2"] for bits in (8, 2)}
    for bits, held in by_bits.items():
        scale = np.float32(of.table.activations["relu1_out"][bits].scale)
        np.testing.assert_array_equal(held.bias_scales, held.scales * scale)
    assert by_bits[8].bias is not None
    assert by_bits[2].bias is not None
    assert np.abs(by_bits[8].bias).max() > 4 * np.abs(by_bits[2].bias).max()


@pytest.mark.parametrize("name", ["residual", "attention", "batchnorm"])
def test_rounded_weights_take_the_place_of_nearest_codes(name: str) -> None:
    """Each at its own bits; the layers that the table lacks have their nearest codes still."""
    of = small(name)
    weights, activations = of.mixed(seed=1)
    table = alone(of, BITS)
    last = of.network.layers[-1].name
    del table[last]
    nearest = layer_codes(of.quantizable, Bits(weights, activations))
    found = layer_codes(of.quantizable, Bits(weights, activations), table)
    assert list(found) == list(nearest)
    for layer in of.network.layers:
        if layer.name not in table:
            if layer.name in nearest:
                np.testing.assert_array_equal(found[layer.name].weight, nearest[layer.name].weight)
                np.testing.assert_array_equal(found[layer.name].bias, nearest[layer.name].bias)
            continue
        held, wanted = found[layer.name], table[layer.name][weights[layer.name]]
        np.testing.assert_array_equal(held.weight, wanted.codes)
        np.testing.assert_array_equal(held.scales, wanted.scales)
        assert (held.bias_values() is None) == (layer.bias is None)
        if held.bias is not None and held.bias_scales is not None and wanted.bias is not None:
            group = layer.groups[0]
            units = wanted.scales * np.float32(of.table.activations[group][activations[group]].scale)
            np.testing.assert_array_equal(held.bias_scales, units)
            np.testing.assert_array_equal(held.bias, np.rint(wanted.bias / units))
            assert held.bias.dtype == np.int32


def test_a_transposed_convolution_in_groups_has_a_bias_for_each_output_of_each_group() -> None:
    of = small("batchnorm")
    layer = next(layer for layer in of.network.layers if layer.op_type == "ConvTranspose")
    scales = np.array([0.5, 1.0, 2.0], np.float32)
    held = RoundedWeight(np.ones(layer.weight_shape, np.int8), scales, 8, bias=np.arange(6.0))
    bits = of.uniform(4, 4)[1]
    codes = with_bias(layer, held, of.table, bits)
    scale = np.float32(of.table.activations[layer.groups[0]][4].scale)
    np.testing.assert_array_equal(codes.bias_scales, np.tile(scales, 2) * scale)
    np.testing.assert_array_equal(codes.bias, np.rint(np.arange(6.0) / (np.tile(scales, 2) * scale)))


@pytest.mark.parametrize("name", ["residual", "depthwise", "concat"])
def test_rounded_weights_compute_better_than_nearest_ones(name: str) -> None:
    of = fitted(name)
    bits = of.uniform(3, 8)
    codes = layer_codes(of.quantizable, bits, alone(of, (3,)))
    assert error_of(of, bits, codes) < 0.75 * error_of(of, bits, None)


@pytest.mark.parametrize("name", SMALL)
def test_the_simulation_is_a_float_model_of_the_same_form(name: str) -> None:
    of = small(name)
    model = simulation(of.quantizable, of.mixed(seed=2))
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == [of.graph.input]
    assert [value.name for value in model.graph.output] == list(of.graph.outputs)
    feeds = {of.graph.input: images(of.network.input_shape, of.graph.batch or 2)}
    # with and without graph optimisations it computes the same, as long as Q/DQ is not fused
    plain, optimized = (
        run_session(open_session(model, integer_kernels=False, optimize=optimize), feeds)[0]
        for optimize in (False, True)
    )
    assert spread_of(plain - optimized, plain) < 1e-2
