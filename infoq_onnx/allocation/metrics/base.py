"""What a metric is: a cost that a budget can bound, as a function of one exact integer total."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from infoq_onnx.schema import Network, Unit


@dataclass(frozen=True)
class Term:
    """A part of a total: `amount` times the bits of each of `units`, or what `table` says for these bits."""

    amount: int
    units: tuple[Unit, ...]
    """One or two."""
    table: Mapping[tuple[int, ...], int] | None = None
    """Cost by the bits of `units`, in their order; never less for more bits."""

    def cost(self, bits: Mapping[Unit, int]) -> int:
        """Count this part for an assignment of bits."""
        chosen = tuple(bits[unit] for unit in self.units)
        return self.amount * (math.prod(chosen) if self.table is None else self.table[chosen])


class Metric(Protocol):
    """A cost of an assignment of bits. No metric is better for a unit with more bits."""

    @property
    def name(self) -> str:
        """As in the option ``name`` and in an allocation."""

    @property
    def suffixes(self) -> Mapping[str, int]:
        """What its limits are written with."""

    @property
    def at_most(self) -> bool:
        """Whether a budget is the most it may be, or else the least."""

    def terms(self, network: Network) -> tuple[Term, ...]:
        """Split the total into its terms; none where the network has nothing that this counts."""

    def value(self, network: Network, total: int) -> float:
        """Turn a total into the metric, rounded once to the nearest float64."""

    def total(self, network: Network, value: Fraction) -> Fraction:
        """Turn a value of the metric into a total: the inverse of `value`, exactly."""
