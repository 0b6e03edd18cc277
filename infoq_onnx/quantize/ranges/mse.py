"""The range with the least squared error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infoq_onnx.jit import compiled
from infoq_onnx.quantize.ranges.histogram import Histogram, scale_and_zero
from infoq_onnx.schema import Quantizer

COARSE = np.concatenate([np.geomspace(0.02, 0.4, 16, endpoint=False), np.linspace(0.4, 1.0, 25)])
"""Clipping points of the first round, as a share of the observed extreme."""
_ROUNDS = 3
"""Number of refinements around the best clipping points."""
_FINE = 9
"""Number of clipping points per end and refinement."""


def mse(histogram: Histogram, bits: int) -> Quantizer:
    """Return the grid with the least squared error on a histogram.

    Both ends of the range are shrunk independently: first over coarse clipping points, then over finer ones around the
    best. The zero point is an integer code, so 0 is always exact.

    Parameters
    ----------
    histogram : values of the tensor
    bits : bit-width

    Returns
    -------
    Quantizer
        Unsigned and asymmetric.
    """
    levels = (1 << bits) - 1
    if not histogram.high > histogram.low:
        return Quantizer(bits, 1.0, 0)
    centers, counts = histogram.centers(), histogram.counts.astype(np.float64)
    used = counts > 0
    centers, counts = centers[used], counts[used]
    # an end that is exactly 0 is not searched
    lows = COARSE if histogram.low < 0 else np.ones(1)
    highs = COARSE if histogram.high > 0 else np.ones(1)
    best = (np.inf, 1.0, 0, 1.0, 1.0)
    step_low = step_high = 0.05
    for round_ in range(_ROUNDS + 1):
        for f_low in lows:
            for f_high in highs:
                scale, zero = scale_and_zero(histogram.low * f_low, histogram.high * f_high, levels)
                error = _squared_error(centers, counts, float(scale), float(zero), float(levels))
                if error < best[0]:
                    best = (error, scale, zero, float(f_low), float(f_high))
        if round_ < _ROUNDS:
            lows = _around(best[3], step_low) if histogram.low < 0 else lows
            highs = _around(best[4], step_high) if histogram.high > 0 else highs
            step_low, step_high = step_low / 4, step_high / 4
    return Quantizer(bits, best[1], best[2])


def _around(center: float, step: float) -> npt.NDArray[np.float64]:
    return np.clip(center + np.linspace(-step, step, _FINE), 0.01, 1.0)


@compiled
def _squared_error(
    centers: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], scale: float, zero: float, levels: float
) -> float:
    error = 0.0
    for i in range(centers.size):
        code = min(max(np.rint(centers[i] / scale) + zero, 0.0), levels)
        error += counts[i] * (centers[i] - scale * (code - zero)) ** 2
    return error
