"""Methods that choose an activation's range, by name: each maps a tensor's histogram to a grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from infoq_onnx.errors import SettingsError, setting
from infoq_onnx.quantize.ranges.entropy import entropy
from infoq_onnx.quantize.ranges.histogram import BINS, Histogram, grid_between
from infoq_onnx.quantize.ranges.minmax import minmax
from infoq_onnx.quantize.ranges.mse import mse
from infoq_onnx.quantize.ranges.percentile import percentile
from infoq_onnx.schema import Quantizer

__all__ = ["BINS", "RANGES", "Histogram", "Range", "get_range", "grid_between"]


class Range(Protocol):
    """A method that chooses a tensor's grid."""

    def __call__(self, histogram: Histogram, bits: int) -> Quantizer:
        """Return the unsigned asymmetric grid with `bits` bits for a histogram; 0 is one of its values."""


RANGES: Mapping[str, Range] = {"mse": mse, "percentile": percentile, "minmax": minmax, "entropy": entropy}


def get_range(name: str) -> Range:
    """Return the method with a name, a key of `RANGES`.

    Raises
    ------
    SettingsError
        No method has that name.
    """
    if name not in RANGES:
        raise SettingsError(f"{setting('act_range')} {name}: choose {' or '.join(RANGES)}")
    return RANGES[name]
