"""The range that all but a few values lie in."""

from __future__ import annotations

import numpy as np

from infoq_onnx.quantize.ranges.histogram import BINS, Histogram, grid_between
from infoq_onnx.schema import Quantizer

PERCENT = 99.99
"""Of the values, which the range holds; half of the others are clipped at each end."""


def percentile(histogram: Histogram, bits: int) -> Quantizer:
    """Make the grid of the middle `PERCENT` of the values, to a bin, 0 included."""
    total = int(histogram.counts.sum())
    if total == 0 or not histogram.high > histogram.low:
        return grid_between(histogram.low, histogram.high, bits)
    share = np.cumsum(histogram.counts) / total
    tail = (1 - PERCENT / 100) / 2
    width = (histogram.high - histogram.low) / BINS
    # the outer edges of the bins that the two quantiles lie in
    low = histogram.low + width * int(np.searchsorted(share, tail, side="right"))
    high = histogram.low + width * (int(np.searchsorted(share, 1 - tail, side="left")) + 1)
    return grid_between(min(low, 0.0), max(min(high, histogram.high), 0.0), bits)
