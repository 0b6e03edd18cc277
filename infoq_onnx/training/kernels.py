"""Fake quantization on the CPU, in one pass over the values: in single operations, it would take most of the time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import prange

from infoq_onnx.jit import compiled_parallel

Values = npt.NDArray[np.float32]

_BLOCK = 1 << 15
"""Values of a block. Sums are made per block, so that they do not depend on the number of threads."""


def quantized(x: Values, step: np.float32, zero_point: np.float32, largest: int) -> Values:
    """Quantize values [n] to unsigned codes and back, as QuantizeLinear, Clip and DequantizeLinear do."""
    found = np.empty_like(x)
    _quantize(x, step, zero_point, np.float32(largest), found)
    return found


def gradients(
    x: Values, step: np.float32, zero_point: np.float32, largest: int, gradient: Values
) -> tuple[Values, float, float]:
    """Return the gradients of values [n], of the step and of the zero point; see `training.quantizers`."""
    of_x = np.empty_like(x)
    sums = np.zeros((-(-len(x) // _BLOCK), 2))
    _gradients(x, step, zero_point, np.float32(largest), gradient, of_x, sums)
    of_step, outside = sums.sum(axis=0)
    return of_x, float(of_step), float(-step * outside)


@compiled_parallel
def _quantize(x: Any, step: Any, zero_point: Any, largest: Any, found: Any) -> None:
    zero = np.float32(0.0)
    for block in prange((len(x) + _BLOCK - 1) // _BLOCK):
        for i in range(block * _BLOCK, min(len(x), (block + 1) * _BLOCK)):
            code = np.rint(x[i] / step) + zero_point
            found[i] = (min(max(code, zero), largest) - zero_point) * step


@compiled_parallel
def _gradients(x: Any, step: Any, zero_point: Any, largest: Any, gradient: Any, of_x: Any, sums: Any) -> None:
    zero = np.float32(0.0)
    for block in prange((len(x) + _BLOCK - 1) // _BLOCK):
        of_step, outside = 0.0, 0.0
        for i in range(block * _BLOCK, min(len(x), (block + 1) * _BLOCK)):
            ratio = x[i] / step
            code = np.rint(ratio) + zero_point
            g = gradient[i]
            inside = zero <= code <= largest
            kept = g if inside else zero
            of_x[i] = kept
            of_step += g * (min(max(code, zero), largest) - zero_point) - kept * ratio
            outside += g - kept
        sums[block, 0] = of_step
        sums[block, 1] = outside
