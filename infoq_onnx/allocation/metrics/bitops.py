"""BitOps: Σ MACs · b_w · b_a for one image, or MACs · b_a · b_a' for a MatMul of two activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from infoq_onnx.allocation.metrics.base import Term
from infoq_onnx.allocation.units import COUNTS
from infoq_onnx.schema import Layer, Network, Unit


@dataclass(frozen=True)
class BitOps:
    """Multiply-accumulates times both bit-widths."""

    name: str = "bitops"
    suffixes: Mapping[str, int] = field(default_factory=lambda: COUNTS)
    at_most: bool = True

    def terms(self, network: Network) -> tuple[Term, ...]:
        """Return one term per layer."""
        return tuple(Term(layer.macs, multiplied(layer)) for layer in network.layers)

    def value(self, network: Network, total: int) -> float:  # noqa: ARG002
        """Return the total itself."""
        return float(total)

    def total(self, network: Network, value: Fraction) -> Fraction:  # noqa: ARG002
        """Return the value itself."""
        return value


def multiplied(layer: Layer) -> tuple[Unit, Unit]:
    """Return the units on both sides of a layer's product: its activations, then its weights or second activations.

    For a MatMul of a tensor with itself, both units are the same.
    """
    left = Unit("activation", layer.groups[0])
    right = Unit("activation", layer.groups[-1]) if layer.weight is None else Unit("weight", layer.name)
    return left, right
