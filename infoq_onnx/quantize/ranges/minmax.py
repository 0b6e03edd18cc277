"""The full observed range: nothing is clipped."""

from __future__ import annotations

from infoq_onnx.quantize.ranges.histogram import Histogram, grid_between
from infoq_onnx.schema import Quantizer


def minmax(histogram: Histogram, bits: int) -> Quantizer:
    """Return the grid with `bits` bits from the smallest to the largest observed value, extended to contain 0."""
    return grid_between(histogram.low, histogram.high, bits)
