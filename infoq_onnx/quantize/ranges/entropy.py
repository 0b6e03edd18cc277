"""The range that keeps the distribution of the values: least KL divergence (Migacz, GTC 2017, as in TensorRT).

P is the histogram with what lies beyond the range added to its outermost bins. Q has the values inside the range, those
of each code spread evenly over the code's bins that are not empty. KL(P ‖ Q) is least where rounding and clipping blur
P least.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infoq_onnx.jit import compiled
from infoq_onnx.quantize.ranges.histogram import Histogram, grid_between, scale_and_zero
from infoq_onnx.quantize.ranges.mse import COARSE
from infoq_onnx.schema import Quantizer


def entropy(histogram: Histogram, bits: int) -> Quantizer:
    """Make the grid whose range keeps the distribution; both ends are tried at the shares of `mse.COARSE`."""
    if not histogram.high > histogram.low:
        return grid_between(histogram.low, histogram.high, bits)
    levels = (1 << bits) - 1
    centers, counts = histogram.centers(), histogram.counts.astype(np.float64)
    lows = COARSE if histogram.low < 0 else np.ones(1)
    highs = COARSE if histogram.high > 0 else np.ones(1)
    best = (np.inf, Quantizer(bits, 1.0, 0))
    # of equal ranges the widest
    for f_low in lows[::-1]:
        for f_high in highs[::-1]:
            scale, zero = scale_and_zero(histogram.low * f_low, histogram.high * f_high, levels)
            divergence = float(divergence_of(centers, counts, scale, float(zero), float(levels)))
            if divergence < best[0]:
                best = (divergence, Quantizer(bits, scale, zero))
    return best[1]


@compiled
def divergence_of(
    centers: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], scale: float, zero: float, levels: float
) -> float:
    """KL(P ‖ Q) in nats, of a histogram under a grid."""
    codes = int(levels) + 1
    held = np.zeros(codes)
    filled = np.zeros(codes)
    reference = counts.copy()
    code_of = np.empty(centers.size, np.int64)
    first, last = -1, -1
    for i in range(centers.size):
        exact = np.rint(centers[i] / scale) + zero
        code_of[i] = int(min(max(exact, 0.0), levels))
        if exact >= 0.0 and exact <= levels:
            if first < 0:
                first = i
            last = i
    if first < 0:
        return np.inf
    for i in range(centers.size):
        if i < first:
            reference[first] += reference[i]
            reference[i] = 0.0
        elif i > last:
            reference[last] += reference[i]
            reference[i] = 0.0
    total = 0.0
    # Q is made of what was not clipped, as TensorRT does: clipping then shows in the outermost bins
    kept = 0.0
    for i in range(first, last + 1):
        total += reference[i]
        if reference[i] > 0.0:
            held[code_of[i]] += counts[i]
            filled[code_of[i]] += 1.0
            kept += counts[i]
    if kept == 0.0:
        return np.inf
    divergence = 0.0
    for i in range(first, last + 1):
        if reference[i] > 0.0:
            q = held[code_of[i]] / filled[code_of[i]] / kept
            if q == 0.0:
                return np.inf
            p = reference[i] / total
            divergence += p * np.log(p / q)
    return divergence
