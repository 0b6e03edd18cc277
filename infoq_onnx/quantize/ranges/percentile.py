"""The range that contains all values except a small percentage."""

from __future__ import annotations

import numpy as np

from infoq_onnx.quantize.ranges.histogram import BINS, Histogram, grid_between
from infoq_onnx.schema import Quantizer

PERCENT = 99.99
"""Percentage of the values inside the range; half of the others are clipped at each end."""


def percentile(histogram: Histogram, bits: int) -> Quantizer:
    """Return the grid of the middle `PERCENT` percent of the values, extended to contain 0.

    Parameters
    ----------
    histogram : values of the tensor; its bin width is the resolution of the range
    bits : bit-width

    Returns
    -------
    Quantizer
        Unsigned and asymmetric.
    """
    total = int(histogram.counts.sum())
    if total == 0 or not histogram.high > histogram.low:
        return grid_between(histogram.low, histogram.high, bits)
    share = np.cumsum(histogram.counts) / total
    tail = (1 - PERCENT / 100) / 2
    width = (histogram.high - histogram.low) / BINS
    # the outer edges of the bins that contain the two quantiles
    low = histogram.low + width * int(np.searchsorted(share, tail, side="right"))
    high = histogram.low + width * (int(np.searchsorted(share, 1 - tail, side="left")) + 1)
    return grid_between(min(low, 0.0), max(min(high, histogram.high), 0.0), bits)
