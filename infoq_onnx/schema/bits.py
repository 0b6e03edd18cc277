"""Bit-widths, and the units that have a bit-width of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

BITS: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
"""The supported bit-widths. 8 is the baseline."""

BASELINE_BITS = 8

EXACT_BITS = 7
"""Most bits of a weight for which the sum of a pair of products always fits 16 bits (see `quantize.saturation`)."""

Kind = Literal["weight", "activation"]


@dataclass(frozen=True)
class Unit:
    """A part of the network with its own bit-width: the weights of a layer, or the activations of a group."""

    kind: Kind
    name: str
    """Name of the layer, or of the group's tensor."""


@dataclass(frozen=True)
class Change:
    """A unit with a bit-width that differs from the baseline."""

    unit: Unit
    bits: int


class Bits(NamedTuple):
    """Bits of every unit."""

    weights: Mapping[str, int]
    """Name of the layer → bits, for every layer that has weights."""
    activations: Mapping[str, int]
    """Tensor of the group → bits, for every activation group."""


@dataclass(frozen=True)
class Quantizer:
    """An asymmetric unsigned per-tensor grid: codes 0 … 2^bits − 1, value = scale · (code − zero_point)."""

    bits: int
    scale: float
    """Exactly representable in float32, the type in the emitted graph."""
    zero_point: int
