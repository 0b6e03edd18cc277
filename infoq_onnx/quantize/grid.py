"""Integer grids: the single definition of which value a code represents.

Weights have zero point 0 and one scale per output channel: value = scale · code. Activations are unsigned and
asymmetric, with one scale per tensor: value = scale · (code − zero_point). Rounding is half to even, as in ONNX
QuantizeLinear. Simulation, trials and emission all call these functions, so they cannot disagree on a code.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from infoq_onnx.schema import Quantizer

FloatArray = npt.NDArray[np.floating]

LARGEST_BIAS = 2**30
"""Largest code of a bias. Integer kernels add products to it in int32, which has to have room for them: beyond its
limits the sum would change its sign."""

T = TypeVar("T", bound=np.generic)

_CHUNK = 2**23
"""Number of weights rounded at a time."""


def weight_code_limits(bits: int) -> tuple[int, int]:
    """Return the smallest and the largest weight code at a bit-width, for rounding to nearest.

    Below 8 bits all 2^bits codes are used: at 2 bits, omitting one would cost a quarter of the grid. At 8 bits −128 is
    omitted, as every integer backend expects for symmetric weights. Input-dependent rounding uses different grids at
    few bits, see `quantize.levels`.
    """
    return (-127, 127) if bits == 8 else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def per_channel(values: npt.NDArray[T], ndim: int, axis: int) -> npt.NDArray[T]:
    """Reshape per-channel values so that they broadcast against a weight.

    Parameters
    ----------
    values : array [C]
    ndim : number of axes of the weight
    axis : output-channel axis of the weight

    Returns
    -------
    array with `ndim` axes
        C along `axis`, 1 along all others.
    """
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)


def quantize_weight(weight: FloatArray, scales: FloatArray, bits: int, axis: int) -> npt.NDArray[np.int8]:
    """Round a weight to its nearest codes.

    Parameters
    ----------
    weight : float array, any shape
    scales : float array [C], C = weight.shape[axis]
    bits : bit-width, 2 … 8
    axis : output-channel axis

    Returns
    -------
    int8 array of the weight's shape
    """
    low, high = weight_code_limits(bits)
    codes = np.empty(weight.shape, dtype=np.int8)
    # in chunks of channels, because float64 takes eight times the memory of the codes
    step = max(1, _CHUNK * len(scales) // max(1, weight.size))
    rows, found = np.moveaxis(weight, axis, 0), np.moveaxis(codes, axis, 0)
    for start in range(0, len(scales), step):
        part = slice(start, start + step)
        ratio = rows[part].astype(np.float64) / per_channel(scales[part].astype(np.float64), weight.ndim, 0)
        found[part] = np.clip(np.rint(ratio), low, high)
    return codes


def dequantize_weight(codes: npt.NDArray[np.int8], scales: FloatArray, axis: int) -> npt.NDArray[np.float32]:
    """Compute the values of weight codes, in float32 as DequantizeLinear does.

    Parameters
    ----------
    codes : weight codes, any shape
    scales : float array [C], C = codes.shape[axis]
    axis : output-channel axis

    Returns
    -------
    float32 array of the codes' shape
    """
    values: npt.NDArray[np.float32] = codes.astype(np.float32)
    values *= per_channel(scales.astype(np.float32), codes.ndim, axis)
    return values


def bias_scales(input_scale: float, weight_scales: FloatArray) -> npt.NDArray[np.float32]:
    """Return the scales of a bias.

    Integer kernels add the bias to the int32 sum of products, so its scale is the products' scale.

    Parameters
    ----------
    input_scale : scale of the layer's input
    weight_scales : scales of the layer's weight [C]

    Returns
    -------
    float32 array [C]
    """
    units: npt.NDArray[np.float32] = weight_scales.astype(np.float32)
    units *= np.float32(input_scale)
    return units


def quantize_bias(bias: FloatArray, scales: FloatArray) -> npt.NDArray[np.int32]:
    """Round a bias to its nearest int32 codes, of at most `LARGEST_BIAS`.

    Parameters
    ----------
    bias : float array [C]
    scales : scales [C] from `bias_scales`

    Returns
    -------
    int32 array [C]
        0 where the scale underflowed to 0 in float32.
    """
    ratios = np.divide(bias, scales, out=np.zeros(bias.shape), where=scales > 0, dtype=np.float64)
    return np.clip(np.rint(ratios), -LARGEST_BIAS, LARGEST_BIAS).astype(np.int32)


def dequantize_bias(codes: npt.NDArray[np.int32], scales: FloatArray) -> npt.NDArray[np.float32]:
    """Compute the values [C] of bias codes [C] with scales [C], in float32 as DequantizeLinear does."""
    return codes.astype(np.float32) * scales.astype(np.float32)


def quantize_activation(values: FloatArray, quantizer: Quantizer) -> npt.NDArray[np.uint8]:
    """Compute activation codes as QuantizeLinear (float32 division, half to even) and a Clip to 2^bits − 1 do."""
    ratio = np.rint(values.astype(np.float32) / np.float32(quantizer.scale))
    codes: npt.NDArray[np.uint8] = np.clip(ratio + quantizer.zero_point, 0, (1 << quantizer.bits) - 1).astype(np.uint8)
    return codes


def dequantize_activation(codes: npt.NDArray[np.uint8], quantizer: Quantizer) -> npt.NDArray[np.float32]:
    """Compute the float32 values of activation codes, as DequantizeLinear does."""
    return (codes.astype(np.float32) - np.float32(quantizer.zero_point)) * np.float32(quantizer.scale)


def clips_alike(quantizer: Quantizer, low: float, high: float) -> bool:
    """Return whether a Clip to [low, high] before a quantizer is redundant.

    Parameters
    ----------
    quantizer : the quantizer after the Clip
    low, high : bounds of the Clip

    Returns
    -------
    bool
        True where quantizing gives the same codes with and without the Clip; always False where `low` is not 0.
    """
    last = (1 << quantizer.bits) - 1
    return quantizer.zero_point == 0 and low == 0.0 and round(min(high / quantizer.scale, 2.0 * last)) >= last
