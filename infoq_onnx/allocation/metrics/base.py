"""The definition of a metric: a cost that a budget can bound, as a function of one exact integer total."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from infoq_onnx.schema import Network, Unit


@dataclass(frozen=True)
class Term:
    """A term of a total: `amount` times the product of the bits of `units`, or times the value of `table` for them."""

    amount: int
    units: tuple[Unit, ...]
    """One or two units."""
    table: Mapping[tuple[int, ...], int] | None = None
    """Bits of `units`, in this order → cost. The cost never falls with more bits."""

    def cost(self, bits: Mapping[Unit, int]) -> int:
        """Return the value of the term for an assignment of bits."""
        chosen = tuple(bits[unit] for unit in self.units)
        return self.amount * (math.prod(chosen) if self.table is None else self.table[chosen])


class Metric(Protocol):
    """A cost of an assignment of bits. More bits never improve a metric."""

    @property
    def name(self) -> str:
        """Name of the metric, as in `bounds` and in an allocation."""

    @property
    def suffixes(self) -> Mapping[str, int]:
        """Suffixes that a limit may have, with their factors."""

    @property
    def at_most(self) -> bool:
        """Whether a budget is an upper limit; otherwise it is a lower limit."""

    def terms(self, network: Network) -> tuple[Term, ...]:
        """Return the terms of the total; empty if the network has nothing that the metric counts."""

    def value(self, network: Network, total: int) -> float:
        """Convert a total to the value of the metric, rounded once to the nearest float64."""

    def total(self, network: Network, value: Fraction) -> Fraction:
        """Convert a value of the metric to a total: the exact inverse of `value`."""
