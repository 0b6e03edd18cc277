"""Activation ranges: histograms of what a tensor held, and the grid that represents them with least squared error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infoq_onnx.jit import compiled
from infoq_onnx.quantize.grid import FloatArray
from infoq_onnx.schema import Quantizer

BINS = 4096
_COARSE = np.concatenate([np.geomspace(0.02, 0.4, 16, endpoint=False), np.linspace(0.4, 1.0, 25)])
"""Clipping points tried first, as a share of the observed extreme."""
_ROUNDS = 3
_FINE = 9


@dataclass(frozen=True)
class Histogram:
    """Counts of a tensor's values in equal bins from `low` to `high`; the range always holds 0, which padding needs."""

    low: float
    high: float
    counts: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, low: float, high: float) -> Histogram:
        """Make a histogram for values observed between `low` and `high`."""
        return cls(min(low, 0.0), max(high, 0.0), np.zeros(BINS, dtype=np.int64))

    def add(self, values: FloatArray) -> None:
        """Count values, in place; those beyond the range go to the outermost bins."""
        if self.high > self.low:
            _count(np.ravel(values), self.low, BINS / (self.high - self.low), self.counts)

    def centers(self) -> npt.NDArray[np.float64]:
        """Bin centres [BINS]; the bin that holds 0 is represented by 0 itself, where ReLU puts half of all values."""
        width = (self.high - self.low) / BINS
        centers = np.float64(self.low) + width * (np.arange(BINS, dtype=np.float64) + 0.5)
        if width > 0:
            centers[min(int(-self.low / width), BINS - 1)] = 0.0
        return centers


def activation_quantizer(histogram: Histogram, bits: int) -> Quantizer:
    """The unsigned asymmetric grid with the least squared error on a histogram.

    Both ends of the range are shrunk independently, on a coarse grid of clipping points and then on finer ones around
    the best. The zero point is an integer code, so 0 is always represented exactly.
    """
    levels = (1 << bits) - 1
    if not histogram.high > histogram.low:
        return Quantizer(bits, 1.0, 0)
    centers, counts = histogram.centers(), histogram.counts.astype(np.float64)
    used = counts > 0
    centers, counts = centers[used], counts[used]
    # an end that is exactly 0 has nothing to search
    lows = _COARSE if histogram.low < 0 else np.ones(1)
    highs = _COARSE if histogram.high > 0 else np.ones(1)
    best = (np.inf, 1.0, 0, 1.0, 1.0)
    step_low = step_high = 0.05
    for round_ in range(_ROUNDS + 1):
        for f_low in lows:
            for f_high in highs:
                scale, zero = _grid(histogram.low * f_low, histogram.high * f_high, levels)
                error = _squared_error(centers, counts, float(scale), float(zero), float(levels))
                if error < best[0]:
                    best = (error, scale, zero, float(f_low), float(f_high))
        if round_ < _ROUNDS:
            lows = _around(best[3], step_low) if histogram.low < 0 else lows
            highs = _around(best[4], step_high) if histogram.high > 0 else highs
            step_low, step_high = step_low / 4, step_high / 4
    return Quantizer(bits, best[1], best[2])


def grid_between(low: float, high: float, bits: int) -> Quantizer:
    """Make the grid of a range that holds 0."""
    return Quantizer(bits, *_grid(low, high, (1 << bits) - 1))


def _around(center: float, step: float) -> npt.NDArray[np.float64]:
    return np.clip(center + np.linspace(-step, step, _FINE), 0.01, 1.0)


def _grid(low: float, high: float, levels: int) -> tuple[float, int]:
    """Scale (a float32 value) and zero point of a range that holds 0."""
    scale = float(np.float32((high - low) / levels))
    if scale < np.finfo(np.float32).tiny:
        return 1.0, 0
    return scale, int(np.clip(np.rint(-low / scale), 0, levels))


@compiled
def _count(values: npt.NDArray[np.float32], low: float, per_unit: float, counts: npt.NDArray[np.int64]) -> None:
    last = counts.size - 1
    for value in values:
        counts[min(max(int((value - low) * per_unit), 0), last)] += 1


@compiled
def _squared_error(
    centers: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], scale: float, zero: float, levels: float
) -> float:
    error = 0.0
    for i in range(centers.size):
        code = min(max(np.rint(centers[i] / scale) + zero, 0.0), levels)
        error += counts[i] * (centers[i] - scale * (code - zero)) ** 2
    return error
