"""The metric of activations: mean bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from infoq_onnx.allocation.metrics.base import Term
from infoq_onnx.schema import BASELINE_BITS, Network, Unit


@dataclass(frozen=True)
class MeanActivationBits:
    """Mean of b_a, weighted by the elements of each group's tensor; 8 for a network without activation groups."""

    name: str = "avg_act_bits"
    suffixes: Mapping[str, int] = field(default_factory=dict)
    at_most: bool = True

    def terms(self, network: Network) -> tuple[Term, ...]:
        """Return one term per activation group."""
        return tuple(Term(group.elements, (Unit("activation", group.name),)) for group in network.groups)

    def value(self, network: Network, total: int) -> float:
        """Return the bits per element."""
        count = _elements(network)
        return total / count if count else float(BASELINE_BITS)

    def total(self, network: Network, value: Fraction) -> Fraction:
        """Return the bits of all elements."""
        return value * _elements(network)


def _elements(network: Network) -> int:
    return sum(group.elements for group in network.groups)
