"""The integer grids: the one place that says which value a code stands for.

Weights have zero point 0 and one scale an output channel: value = scale · code. Activations are asymmetric and
unsigned, one scale a tensor: value = scale · (code − zero_point). Rounding is half to even, as ONNX QuantizeLinear
does. Simulation, trials and emission all call these functions, so they cannot disagree on a code.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from infoq_onnx.schema import Quantizer

FloatArray = npt.NDArray[np.floating]
T = TypeVar("T", bound=np.generic)

_CHUNK = 2**23
"""Weights that are rounded at once."""


def weight_code_limits(bits: int) -> tuple[int, int]:
    """Smallest and largest weight code at a bit-width.

    To nearest. Rounding that knows the layer's inputs has grids of its own at few bits: see `quantize.levels`.

    Below 8 bits all 2^bits codes are used: at 2 bits, giving one up would cost a quarter of the grid. At 8 bits −128
    is left out, as every integer backend expects of a symmetric weight.
    """
    return (-127, 127) if bits == 8 else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def per_channel(values: npt.NDArray[T], ndim: int, axis: int) -> npt.NDArray[T]:
    """Reshape values [C] so that they broadcast along `axis` of a weight with `ndim` axes."""
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)


def quantize_weight(weight: FloatArray, scales: FloatArray, bits: int, axis: int) -> npt.NDArray[np.int8]:
    """Nearest codes of a weight.

    Parameters
    ----------
    weight : float array, any shape
    scales : float32 array [C], C = weight.shape[axis]
    bits : 2 … 8
    axis : the output-channel axis

    Returns
    -------
    int8 array of weight's shape
    """
    low, high = weight_code_limits(bits)
    codes = np.empty(weight.shape, dtype=np.int8)
    # some channels at a time, as float64 takes eight times what codes take
    step = max(1, _CHUNK * len(scales) // max(1, weight.size))
    rows, found = np.moveaxis(weight, axis, 0), np.moveaxis(codes, axis, 0)
    for start in range(0, len(scales), step):
        part = slice(start, start + step)
        ratio = rows[part].astype(np.float64) / per_channel(scales[part].astype(np.float64), weight.ndim, 0)
        found[part] = np.clip(np.rint(ratio), low, high)
    return codes


def dequantize_weight(codes: npt.NDArray[np.int8], scales: FloatArray, axis: int) -> npt.NDArray[np.float32]:
    """Values of weight codes, in float32 as DequantizeLinear computes them."""
    values: npt.NDArray[np.float32] = codes.astype(np.float32)
    values *= per_channel(scales.astype(np.float32), codes.ndim, axis)
    return values


def bias_scales(input_scale: float, weight_scales: FloatArray) -> npt.NDArray[np.float32]:
    """Scales [C] of a bias: integer kernels add it to the int32 sum of products, so it is in units of their scale."""
    units: npt.NDArray[np.float32] = weight_scales.astype(np.float32)
    units *= np.float32(input_scale)
    return units


def quantize_bias(bias: FloatArray, scales: FloatArray) -> npt.NDArray[np.int32]:
    """Nearest int32 codes of a bias [C] under `bias_scales`; 0 where these are too small for a float32."""
    limits = np.iinfo(np.int32)
    ratios = np.divide(bias, scales, out=np.zeros(bias.shape), where=scales > 0, dtype=np.float64)
    return np.clip(np.rint(ratios), limits.min, limits.max).astype(np.int32)


def dequantize_bias(codes: npt.NDArray[np.int32], scales: FloatArray) -> npt.NDArray[np.float32]:
    """Values of bias codes, in float32 as DequantizeLinear computes them."""
    return codes.astype(np.float32) * scales.astype(np.float32)


def quantize_activation(values: FloatArray, quantizer: Quantizer) -> npt.NDArray[np.uint8]:
    """Codes of activation values under QuantizeLinear (float32 division, half to even) and a Clip to 2^bits − 1."""
    ratio = np.rint(values.astype(np.float32) / np.float32(quantizer.scale))
    codes: npt.NDArray[np.uint8] = np.clip(ratio + quantizer.zero_point, 0, (1 << quantizer.bits) - 1).astype(np.uint8)
    return codes


def dequantize_activation(codes: npt.NDArray[np.uint8], quantizer: Quantizer) -> npt.NDArray[np.float32]:
    """Values of activation codes."""
    return (codes.astype(np.float32) - np.float32(quantizer.zero_point)) * np.float32(quantizer.scale)


def clips_alike(quantizer: Quantizer, low: float, high: float) -> bool:
    """Whether quantizing gives the same codes with and without a Clip to [low, high] in front, low being 0."""
    last = (1 << quantizer.bits) - 1
    return quantizer.zero_point == 0 and low == 0.0 and round(min(high / quantizer.scale, 2.0 * last)) >= last
