"""The range that best preserves the distribution of values: least KL divergence (Migacz, GTC 2017, as in TensorRT).

P is the histogram clipped to the range: values beyond the range are added to the outermost bins inside it. Q contains
only the values inside the range; the values of each code are spread evenly over the code's non-empty bins. KL(P ‖ Q)
measures how much rounding and clipping distort P.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infoq_onnx.jit import compiled
from infoq_onnx.quantize.ranges.histogram import Histogram, grid_between, scale_and_zero
from infoq_onnx.quantize.ranges.mse import COARSE
from infoq_onnx.schema import Quantizer


def entropy(histogram: Histogram, bits: int) -> Quantizer:
    """Return the grid with the least KL divergence.

    Both ends of the range are searched over the shares in `mse.COARSE`.

    Parameters
    ----------
    histogram : values of the tensor
    bits : bit-width

    Returns
    -------
    Quantizer
        Unsigned and asymmetric; 0 is one of its values.
    """
    if not histogram.high > histogram.low:
        return grid_between(histogram.low, histogram.high, bits)
    levels = (1 << bits) - 1
    centers, counts = histogram.centers(), histogram.counts.astype(np.float64)
    lows = COARSE if histogram.low < 0 else np.ones(1)
    highs = COARSE if histogram.high > 0 else np.ones(1)
    best = (np.inf, Quantizer(bits, 1.0, 0))
    # widest ranges first: among equal divergences, the widest range wins
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
    """Return KL(P ‖ Q) in nats for a histogram under a grid.

    Parameters
    ----------
    centers, counts : bin centres and counts of the histogram
    scale, zero : scale and zero point of the grid
    levels : largest code of the grid

    Returns
    -------
    float
        Infinite if Q is empty, or 0 in a bin where P is not.
    """
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
    # Q contains only values that were not clipped, as in TensorRT: clipping then shows in the outermost bins
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
