"""Metrics that a budget can bound, by name. A table of costs from a file is also a metric (`metrics.table`)."""

from __future__ import annotations

from collections.abc import Mapping

from infoq_onnx.allocation.metrics.activations import MeanActivationBits
from infoq_onnx.allocation.metrics.base import Metric, Term
from infoq_onnx.allocation.metrics.bitops import BitOps
from infoq_onnx.allocation.metrics.table import Table, read_table
from infoq_onnx.allocation.metrics.weights import Compression, MeanWeightBits, Size, float_bits

__all__ = ["METRICS", "Metric", "Table", "Term", "float_bits", "read_table"]

METRICS: Mapping[str, Metric] = {
    metric.name: metric for metric in (BitOps(), Size(), Compression(), MeanWeightBits(), MeanActivationBits())
}
