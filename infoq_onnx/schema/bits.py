"""Bit-widths, and what gets one of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

BITS: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
"""The bit-widths the method knows. 8 is the baseline."""

BASELINE_BITS = 8

EXACT_BITS = 7
"""The most bits of a weight whose products always fit 16 bits in pairs (see `quantize.saturation`)."""

Kind = Literal["weight", "activation"]


@dataclass(frozen=True)
class Unit:
    """What gets a bit-width of its own: the weights of a layer, or the activations of a group."""

    kind: Kind
    name: str
    """Of the layer, or of the group's tensor."""


@dataclass(frozen=True)
class Change:
    """A unit at a bit-width other than the baseline's."""

    unit: Unit
    bits: int


class Bits(NamedTuple):
    """Bits of every unit."""

    weights: Mapping[str, int]
    """Of every layer that has weights, by its name."""
    activations: Mapping[str, int]
    """Of every activation group, by its tensor."""


@dataclass(frozen=True)
class Quantizer:
    """An asymmetric unsigned per-tensor grid: codes 0 … 2^bits − 1, value = scale · (code − zero_point)."""

    bits: int
    scale: float
    """Exactly representable in float32: the emitted graph stores it so."""
    zero_point: int
