"""The whole range that was observed: nothing is clipped."""

from __future__ import annotations

from infoq_onnx.quantize.ranges.histogram import Histogram, grid_between
from infoq_onnx.schema import Quantizer


def minmax(histogram: Histogram, bits: int) -> Quantizer:
    """Make the grid from the least to the largest value, 0 included."""
    return grid_between(histogram.low, histogram.high, bits)
