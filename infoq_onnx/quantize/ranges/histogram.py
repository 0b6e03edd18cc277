"""Histograms of a tensor's values, and the grid of a range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infoq_onnx.jit import compiled
from infoq_onnx.quantize.grid import FloatArray
from infoq_onnx.schema import Quantizer

BINS = 4096
"""Number of bins of every histogram."""


@dataclass(frozen=True)
class Histogram:
    """Counts of a tensor's values in `BINS` equal bins from `low` to `high`.

    The range always contains 0, because padding needs 0 to be exact.
    """

    low: float
    high: float
    counts: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, low: float, high: float) -> Histogram:
        """Return an empty histogram for values between `low` and `high`; the range is extended to contain 0."""
        return cls(min(low, 0.0), max(high, 0.0), np.zeros(BINS, dtype=np.int64))

    def add(self, values: FloatArray) -> None:
        """Count values of any shape, in place; values beyond the range go to the outermost bins."""
        if self.high > self.low:
            _count(np.ravel(values), self.low, BINS / (self.high - self.low), self.counts)

    def centers(self) -> npt.NDArray[np.float64]:
        """Return the bin centres [BINS].

        The bin that contains 0 is represented by exactly 0, because a ReLU makes about half of all values 0.
        """
        width = (self.high - self.low) / BINS
        centers = np.float64(self.low) + width * (np.arange(BINS, dtype=np.float64) + 0.5)
        if width > 0:
            centers[min(int(-self.low / width), BINS - 1)] = 0.0
        return centers


def grid_between(low: float, high: float, bits: int) -> Quantizer:
    """Return the grid of a range that contains 0.

    Parameters
    ----------
    low, high : ends of the range, low ≤ 0 ≤ high
    bits : bit-width

    Returns
    -------
    Quantizer
        Its scale is a float32 value.
    """
    return Quantizer(bits, *scale_and_zero(low, high, (1 << bits) - 1))


def scale_and_zero(low: float, high: float, levels: int) -> tuple[float, int]:
    """Return the scale and zero point of a range that contains 0.

    Parameters
    ----------
    low, high : ends of the range, low ≤ 0 ≤ high
    levels : largest code

    Returns
    -------
    scale, zero_point : float, int
        The scale is a float32 value; 1 and 0 where the range is too small for a normal float32 scale.
    """
    scale = float(np.float32((high - low) / levels))
    if scale < np.finfo(np.float32).tiny:
        return 1.0, 0
    return scale, int(np.clip(np.rint(-low / scale), 0, levels))


@compiled
def _count(values: npt.NDArray[np.float32], low: float, per_unit: float, counts: npt.NDArray[np.int64]) -> None:
    last = counts.size - 1
    for value in values:
        counts[min(max(int((value - low) * per_unit), 0), last)] += 1
