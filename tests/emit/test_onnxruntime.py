"""What emission relies on onnxruntime to do, on two convolutions written by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.networks import Builder

from .optimized import operators

CHANNELS = 4


class Quantized(Builder):
    """Builds Q/DQ graphs."""

    def quantize(self, x: str, name: str, zero_point: int = 0, largest: int | None = None, scale: float = 0.02) -> str:
        grid = [self.constant(f"{name}_scale", scale), self.constant(f"{name}_zero", zero_point, np.uint8)]
        codes = self.op("QuantizeLinear", [x, *grid], f"{name}_q")
        if largest is not None:
            limits = [self.constant(f"{name}_0", 0, np.uint8), self.constant(f"{name}_top", largest, np.uint8)]
            codes = self.op("Clip", [codes, *limits], f"{name}_clip")
        return self.op("DequantizeLinear", [codes, *grid], f"{name}_dq")

    def dequantized(self, name: str, codes: np.ndarray, scales: np.ndarray) -> str:
        zeros = self.constant(f"{name}_zeros", np.zeros(len(scales)), codes.dtype)
        inputs = [self.constant(f"{name}_codes", codes, codes.dtype), self.constant(f"{name}_scales", scales), zeros]
        return self.op("DequantizeLinear", inputs, f"{name}_values", axis=0)

    def integer_conv(self, x: str, name: str, cin: int, *, bias: str = "int32", group: int = 1) -> str:
        shape = (CHANNELS, cin // group, 3, 3)
        scales = self.random.uniform(0.01, 0.02, CHANNELS).astype(np.float32)
        inputs = [x, self.dequantized(f"{name}_w", self.random.integers(-127, 128, shape).astype(np.int8), scales)]
        if bias in ("int32", "int32 in other units"):
            codes = self.random.integers(-999, 999, CHANNELS).astype(np.int32)
            units = np.float32(1 if bias == "int32" else 2) * np.float32(0.02) * scales
            inputs.append(self.dequantized(f"{name}_b", codes, units))
        elif bias == "float":
            inputs.append(self.constant(f"{name}_b", self.random.standard_normal(CHANNELS)))
        return self.op("Conv", inputs, name, pads=[1] * 4, group=group)

    def finish(self, y: str) -> onnx.ModelProto:
        return self.model(y, (3, 6, 6), (CHANNELS, 6, 6))


def counts(b: Quantized, y: str, folder: Path, *, integer_kernels: bool = True) -> Counter[str]:
    # behind the last quantizer something float, so that the graph does not end in it
    return operators(b.finish(b.op("Tanh", [y], "end")), folder, integer_kernels=integer_kernels)


@pytest.mark.parametrize("bias", ["int32", "float", "none"])
@pytest.mark.parametrize("group", [1, CHANNELS])
def test_convolutions_between_quantizers_become_integer_kernels(bias: str, group: int, tmp_path: Path) -> None:
    b = Quantized()
    y = b.quantize(b.integer_conv(b.quantize("x", "in"), "one", 3, bias=bias), "between")
    y = b.quantize(b.integer_conv(y, "two", CHANNELS, bias=bias, group=group), "out")
    found = counts(b, y, tmp_path)
    assert (found["QLinearConv"], found["Conv"]) == (2, 0)
    # one at each end, none between
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 1)


def test_biases_must_be_in_units_of_the_products(tmp_path: Path) -> None:
    b = Quantized()
    y = b.integer_conv(b.quantize("x", "in"), "one", 3, bias="int32 in other units")
    assert counts(b, b.quantize(y, "out"), tmp_path)["QLinearConv"] == 0


def test_no_quantizer_behind_it_leaves_a_convolution_in_float(tmp_path: Path) -> None:
    b = Quantized()
    y = b.quantize(b.integer_conv(b.quantize("x", "in"), "one", 3), "between")
    found = counts(b, b.integer_conv(y, "two", CHANNELS), tmp_path)
    assert (found["QLinearConv"], found["Conv"] + found["FusedConv"]) == (1, 1)


def test_clipped_codes_stay_on_the_integer_path(tmp_path: Path) -> None:
    b = Quantized()
    y = b.quantize(b.integer_conv(b.quantize("x", "in", largest=15), "one", 3), "between", largest=7)
    y = b.quantize(b.integer_conv(y, "two", CHANNELS), "out", largest=3)
    found = counts(b, y, tmp_path)
    assert (found["QLinearConv"], found["Conv"], found["Clip"]) == (2, 0, 3)
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 1)


def test_a_float_clip_in_front_of_a_quantizer_leaves_the_convolution_in_float(tmp_path: Path) -> None:
    b = Quantized()
    y = b.integer_conv(b.quantize("x", "in"), "one", 3)
    y = b.op("Clip", [y, b.constant("low", 0.0), b.constant("high", 15 * 0.02)], "act")
    found = counts(b, b.quantize(y, "out"), tmp_path)
    assert found["QLinearConv"] == 0
    assert found["Conv"] + found["FusedConv"] == 1


@pytest.mark.parametrize("largest", [None, 7])
@pytest.mark.parametrize(("zero_point", "integer"), [(0, 1), (5, 0)])
def test_relu_vanishes_only_into_a_quantizer_with_zero_point_0(
    zero_point: int, integer: int, largest: int | None, tmp_path: Path
) -> None:
    b = Quantized()
    y = b.relu(b.integer_conv(b.quantize("x", "in"), "one", 3), "act")
    assert counts(b, b.quantize(y, "out", zero_point, largest), tmp_path)["QLinearConv"] == integer


def test_sums_pools_and_joins_have_integer_kernels(tmp_path: Path) -> None:
    b = Quantized()
    x = b.quantize("x", "in")
    left, right = (b.quantize(b.integer_conv(x, name, 3), f"{name}_out", 128) for name in ("one", "two"))
    total = b.quantize(b.op("Add", [left, right], "add"), "sum", 128)
    joined = b.quantize(b.op("Concat", [total, left], "concat", axis=1), "both", 128)
    pooled = b.quantize(b.op("AveragePool", [joined], "mean", kernel_shape=[2, 2]), "pooled", 128)
    largest = b.op("MaxPool", [pooled], "top", kernel_shape=[2, 2])
    y = b.quantize(b.op("GlobalAveragePool", [b.quantize(largest, "kept", 128)], "gap"), "out", 128)
    model = b.model(b.op("Tanh", [y], "end"), (3, 6, 6), (2 * CHANNELS, 1, 1))
    found = operators(model, tmp_path)
    assert found["QLinearConv"] == 2
    assert {"QLinearAdd", "QLinearConcat", "QLinearAveragePool", "QLinearGlobalAveragePool"} <= found.keys()
    assert {"Add", "Concat", "AveragePool", "GlobalAveragePool"}.isdisjoint(found)
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 1)


def test_the_simulation_is_computed_in_float(tmp_path: Path) -> None:
    """With session.disable_quant_qdq quantizers stay nodes and convolutions stay float."""
    b = Quantized()
    y = b.quantize(b.integer_conv(b.quantize("x", "in"), "one", 3), "out")
    found = counts(b, y, tmp_path, integer_kernels=False)
    assert found["QLinearConv"] == 0
    assert found["QuantizeLinear"] == 2
