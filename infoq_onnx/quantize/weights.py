"""Weight scales that minimise squared error, one an output channel.

For a row w and the codes q(s) = clip(round(w/s), low, high) the error Σ (w − s·q(s))² is piecewise quadratic in s with
many minima, so it is searched on a grid first, then polished: with the codes held, the best scale is
s = ⟨w, q⟩ / ⟨q, q⟩, which can only lower the error, and re-rounding can only lower it again.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import prange

from infoq_onnx.jit import compiled_parallel
from infoq_onnx.quantize.grid import FloatArray, weight_code_limits

_FRACTIONS = np.linspace(0.05, 1.0, 77)
"""Clipping points tried, as a share of the largest magnitude in the row."""
_POLISH_STEPS = 8


def weight_scales(weight: FloatArray, bits: int, axis: int) -> npt.NDArray[np.float32]:
    """Per-channel scales with the least squared error at a bit-width.

    Parameters
    ----------
    weight : float array, any shape
    bits : 2 … 8
    axis : the output-channel axis

    Returns
    -------
    float32 array [C], C = weight.shape[axis]; all positive and finite. A channel of zeros gets the largest scale of
    the others (1 when all are zero): any scale represents it, but the bias behind it is stored in units of this one.
    """
    rows = np.ascontiguousarray(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1), dtype=np.float64)
    low, high = weight_code_limits(bits)
    return usable_scales(_search(rows, _FRACTIONS, float(low), float(high))).astype(np.float32)


def usable_scales(scales: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mend the scales of dead and nearly dead channels of one layer, those of dead ones being 0.

    The bias of a channel is an int32 in units of its scale, and would overflow if that were too small.
    """
    largest = float(scales.max(initial=0.0)) or 1.0
    return np.where(scales > 0, np.maximum(scales, largest * 2.0**-16), largest)


@compiled_parallel
def _search(
    rows: npt.NDArray[np.float64], fractions: npt.NDArray[np.float64], low: float, high: float
) -> npt.NDArray[np.float64]:
    """Best scale of each row of [R, d]; 0 for a row of zeros."""
    count, width = rows.shape
    scales = np.zeros(count)
    for r in prange(count):
        row = rows[r]
        largest = 0.0
        for i in range(width):
            largest = max(largest, abs(row[i]))
        if largest == 0.0:
            continue
        best, best_error = 0.0, np.inf
        for fraction in fractions:
            scale = fraction * largest / high
            error = 0.0
            for i in range(width):
                code = min(max(np.rint(row[i] / scale), low), high)
                error += (row[i] - scale * code) ** 2
            if error < best_error:
                best, best_error = scale, error
        for _ in range(_POLISH_STEPS):
            cross, square, error = 0.0, 0.0, 0.0
            for i in range(width):
                code = min(max(np.rint(row[i] / best), low), high)
                cross += row[i] * code
                square += code * code
            if cross <= 0.0 or square == 0.0 or cross / square == best:
                break
            best = cross / square
        scales[r] = best
    return scales
