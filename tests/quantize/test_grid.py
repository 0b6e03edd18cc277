"""Which value a code stands for: onnxruntime's QuantizeLinear and DequantizeLinear are the reference."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper

from infoq_onnx.quantize.grid import (
    LARGEST_BIAS,
    bias_scales,
    dequantize_activation,
    dequantize_bias,
    dequantize_weight,
    per_channel,
    quantize_activation,
    quantize_bias,
    quantize_weight,
    weight_code_limits,
)
from infoq_onnx.schema import BITS, Quantizer

quickly = settings(derandomize=True, deadline=None, max_examples=60)
bit_widths = st.sampled_from(BITS)
scales = st.floats(2**-20, 2**10, width=32)


def session(nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> ort.InferenceSession:
    graph = helper.make_graph(nodes, "reference", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@functools.cache
def activation_reference() -> ort.InferenceSession:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["raw"]),
        helper.make_node("Clip", ["raw", "low", "high"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["values"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [None]),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
        *(helper.make_tensor_value_info(name, TensorProto.UINT8, []) for name in ("zero", "low", "high")),
    ]
    outputs = [
        helper.make_tensor_value_info("codes", TensorProto.UINT8, [None]),
        helper.make_tensor_value_info("values", TensorProto.FLOAT, [None]),
    ]
    return session(nodes, inputs, outputs)


@functools.cache
def constant_reference(kind: int, axis: int, rank: int) -> ort.InferenceSession:
    """DequantizeLinear per channel, as emitted weights and biases have it."""
    node = helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["values"], axis=axis)
    inputs = [
        helper.make_tensor_value_info("codes", kind, [None] * rank),
        helper.make_tensor_value_info("scales", TensorProto.FLOAT, [None]),
        helper.make_tensor_value_info("zeros", kind, [None]),
    ]
    return session([node], inputs, [helper.make_tensor_value_info("values", TensorProto.FLOAT, [None] * rank)])


@quickly
@given(st.data(), bit_widths, scales)
def test_activation_codes_and_values_are_those_of_onnxruntime(data: st.DataObject, bits: int, scale: float) -> None:
    """Bit for bit, on multiples of half a step (ties) and on anything else."""
    last = (1 << bits) - 1
    quantizer = Quantizer(bits, scale, data.draw(st.integers(0, last)))
    halves = data.draw(st.lists(st.integers(-2 * last - 4, 2 * last + 4), min_size=1, max_size=30))
    others = data.draw(st.lists(st.floats(-400, 400, width=32), max_size=30))
    values = np.concatenate([np.array(halves) / 2, others]).astype(np.float32) * np.float32(scale)
    feeds = {
        "x": values,
        "scale": np.float32(scale),
        "zero": np.uint8(quantizer.zero_point),
        "low": np.uint8(0),
        "high": np.uint8(last),
    }
    codes, dequantized = activation_reference().run(None, {name: np.asarray(value) for name, value in feeds.items()})
    found = quantize_activation(values, quantizer)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_array_equal(dequantize_activation(found, quantizer), dequantized)


def test_activation_rounds_half_to_even_before_the_zero_point_is_added() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5], dtype=np.float32)
    assert quantize_activation(values, Quantizer(8, 1.0, 3)).tolist() == [3, 5, 5, 3, 1]


@pytest.mark.parametrize("bits", BITS)
def test_activation_codes_saturate_and_represent_zero_exactly(bits: int) -> None:
    last = (1 << bits) - 1
    quantizer = Quantizer(bits, 0.3, last // 2)
    codes = quantize_activation(np.array([-1e6, 0.0, 1e6], dtype=np.float32), quantizer)
    assert codes.tolist() == [0, last // 2, last]
    assert dequantize_activation(codes, quantizer)[1] == 0.0


@pytest.mark.parametrize(
    ("bits", "limits"), [(2, (-2, 1)), (3, (-4, 3)), (4, (-8, 7)), (5, (-16, 15)), (7, (-64, 63)), (8, (-127, 127))]
)
def test_weight_code_limits(bits: int, limits: tuple[int, int]) -> None:
    assert weight_code_limits(bits) == limits


@quickly
@given(st.data(), bit_widths, st.integers(0, 2))
def test_weight_codes_are_the_nearest_of_all(data: st.DataObject, bits: int, axis: int) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 4)] * 3))
    weight = data.draw(arrays.arrays(np.float32, shape, elements=st.floats(-10, 10, width=32)))
    steps = data.draw(arrays.arrays(np.float32, shape[axis], elements=st.floats(1 / 64, 4, width=32)))
    low, high = weight_code_limits(bits)
    codes = quantize_weight(weight, steps, bits, axis)
    assert codes.dtype == np.int8
    assert codes.shape == weight.shape
    for index in np.ndindex(shape):
        value, step = float(weight[index]), float(steps[index[axis]])
        distances = [abs(value - step * code) for code in range(low, high + 1)]
        assert low <= codes[index] <= high
        assert distances[int(codes[index]) - low] <= min(distances) * (1 + 1e-12) + 1e-15


def test_weight_ties_go_to_the_even_code() -> None:
    weight = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5]], dtype=np.float32)
    assert quantize_weight(weight, np.ones(1, np.float32), 4, 0).tolist() == [[0, 2, 2, 0, -2, -2]]


@quickly
@given(st.data(), st.integers(0, 2))
def test_weight_values_are_those_of_onnxruntime(data: st.DataObject, axis: int) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 4)] * 3))
    codes = data.draw(arrays.arrays(np.int8, shape))
    steps = data.draw(arrays.arrays(np.float32, shape[axis], elements=scales))
    feeds = {"codes": codes, "scales": steps, "zeros": np.zeros(shape[axis], np.int8)}
    (values,) = constant_reference(TensorProto.INT8, axis, 3).run(None, feeds)
    found = dequantize_weight(codes, steps, axis)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values)


@quickly
@given(st.data(), bit_widths)
def test_weights_on_their_grid_survive(data: st.DataObject, bits: int) -> None:
    low, high = weight_code_limits(bits)
    codes = data.draw(arrays.arrays(np.int8, (3, 5), elements=st.integers(low, high)))
    steps = data.draw(arrays.arrays(np.float32, 3, elements=scales))
    values = dequantize_weight(codes, steps, 0)
    np.testing.assert_array_equal(quantize_weight(values, steps, bits, 0), codes)


@quickly
@given(st.data(), scales)
def test_biases_are_int32_in_units_of_the_products(data: st.DataObject, input_scale: float) -> None:
    weight_steps = data.draw(arrays.arrays(np.float32, 5, elements=st.floats(2**-10, 8, width=32)))
    bias = data.draw(arrays.arrays(np.float32, 5, elements=st.floats(-100, 100, width=32)))
    units = bias_scales(input_scale, weight_steps)
    assert units.dtype == np.float32
    np.testing.assert_array_equal(units, weight_steps * np.float32(input_scale))
    codes = quantize_bias(bias, units)
    assert codes.dtype == np.int32
    inside = np.abs(bias) < LARGEST_BIAS * units.astype(np.float64)
    exact = codes.astype(np.float64) * units
    assert np.all(np.abs(exact - bias)[inside] <= 0.5 * units[inside] * (1 + 1e-6))
    feeds = {"codes": codes, "scales": units, "zeros": np.zeros(5, np.int32)}
    (values,) = constant_reference(TensorProto.INT32, 0, 1).run(None, feeds)
    np.testing.assert_array_equal(dequantize_bias(codes, units), values)


def test_bias_saturates_instead_of_wrapping() -> None:
    codes = quantize_bias(np.array([1e6, -1e6], dtype=np.float32), np.full(2, 1e-6, np.float32))
    assert codes.tolist() == [LARGEST_BIAS, -LARGEST_BIAS]
    # room for the products of a layer with 30,000 inputs
    assert codes[0] + 30_000 * 255 * 127 <= np.iinfo(np.int32).max


def test_bias_in_units_too_small_for_a_float_is_none() -> None:
    units = bias_scales(1e-3, np.array([1e-44, 1e-3], np.float32))
    assert units[0] == 0
    assert quantize_bias(np.array([1e-3, 1e-6], np.float32), units).tolist() == [0, 1]


def test_per_channel_broadcasts_along_its_axis() -> None:
    steps = np.array([1.0, 2.0, 3.0])
    assert per_channel(steps, 4, 1).shape == (1, 3, 1, 1)
    np.testing.assert_array_equal((np.ones((2, 3, 4)) * per_channel(steps, 3, 1))[1, :, 2], steps)
