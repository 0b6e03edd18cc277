"""What weights take: bytes, a ratio to float32, mean bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from infoq_onnx.allocation.metrics.base import Term
from infoq_onnx.allocation.units import BYTES
from infoq_onnx.schema import BASELINE_BITS, Network, Unit

FLOAT_BITS = 32


def float_bits(network: Network) -> int:
    """Bits that the weights of the model as it was given take in float32."""
    return FLOAT_BITS * (parameters(network) - network.repeated)


def parameters(network: Network) -> int:
    """Weights of all layers."""
    return sum(layer.parameters for layer in network.layers if layer.weight is not None)


@dataclass(frozen=True)
class Size:
    """Σ parameters · b_w / 8, in bytes."""

    name: str = "size"
    suffixes: Mapping[str, int] = field(default_factory=lambda: BYTES)
    at_most: bool = True

    def terms(self, network: Network) -> tuple[Term, ...]:
        """One a layer with weights."""
        layers = [layer for layer in network.layers if layer.weight is not None]
        return tuple(Term(layer.parameters, (Unit("weight", layer.name),)) for layer in layers)

    def value(self, network: Network, total: int) -> float:  # noqa: ARG002
        """Bits to bytes."""
        return total / 8

    def total(self, network: Network, value: Fraction) -> Fraction:  # noqa: ARG002
        """Bytes to bits."""
        return 8 * value


@dataclass(frozen=True)
class Compression(Size):
    """32 · Σ parameters / Σ parameters · b_w; that of 8 bits where there are none."""

    name: str = "compression"
    suffixes: Mapping[str, int] = field(default_factory=lambda: {"x": 1})
    at_most: bool = False

    def value(self, network: Network, total: int) -> float:
        """How many times smaller than in float32."""
        return float_bits(network) / total if total else FLOAT_BITS / BASELINE_BITS

    def total(self, network: Network, value: Fraction) -> Fraction:
        """Bits that are left."""
        return float_bits(network) / value


@dataclass(frozen=True)
class MeanWeightBits(Size):
    """Mean of b_w weighted by parameters; 8 where there are none."""

    name: str = "avg_weight_bits"
    suffixes: Mapping[str, int] = field(default_factory=dict)

    def value(self, network: Network, total: int) -> float:
        """Bits a weight."""
        count = parameters(network)
        return total / count if count else float(BASELINE_BITS)

    def total(self, network: Network, value: Fraction) -> Fraction:
        """Bits of all weights."""
        return value * parameters(network)
