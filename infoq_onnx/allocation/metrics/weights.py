"""The metrics of weights: bytes, compression relative to float32, and mean bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from infoq_onnx.allocation.metrics.base import Term
from infoq_onnx.allocation.units import BYTES
from infoq_onnx.schema import BASELINE_BITS, Network, Unit

FLOAT_BITS = 32


def float_bits(network: Network) -> int:
    """Return the bits of the weights in float32, for the model as given (without the parts of split channels)."""
    return FLOAT_BITS * (parameters(network) - network.repeated)


def parameters(network: Network) -> int:
    """Return the number of weights of all layers."""
    return sum(layer.parameters for layer in network.layers if layer.weight is not None)


@dataclass(frozen=True)
class Size:
    """Σ parameters · b_w / 8, in bytes."""

    name: str = "size"
    suffixes: Mapping[str, int] = field(default_factory=lambda: BYTES)
    at_most: bool = True

    def terms(self, network: Network) -> tuple[Term, ...]:
        """Return one term per layer with weights."""
        layers = [layer for layer in network.layers if layer.weight is not None]
        return tuple(Term(layer.parameters, (Unit("weight", layer.name),)) for layer in layers)

    def value(self, network: Network, total: int) -> float:  # noqa: ARG002
        """Convert bits to bytes."""
        return total / 8

    def total(self, network: Network, value: Fraction) -> Fraction:  # noqa: ARG002
        """Convert bytes to bits."""
        return 8 * value


@dataclass(frozen=True)
class Compression(Size):
    """32 · Σ parameters / Σ parameters · b_w; 4 for a network without weights."""

    name: str = "compression"
    suffixes: Mapping[str, int] = field(default_factory=lambda: {"x": 1})
    at_most: bool = False

    def value(self, network: Network, total: int) -> float:
        """Return the compression relative to float32."""
        return float_bits(network) / total if total else FLOAT_BITS / BASELINE_BITS

    def total(self, network: Network, value: Fraction) -> Fraction:
        """Return the total bits at a compression."""
        return float_bits(network) / value


@dataclass(frozen=True)
class MeanWeightBits(Size):
    """Mean of b_w, weighted by parameters; 8 for a network without weights."""

    name: str = "avg_weight_bits"
    suffixes: Mapping[str, int] = field(default_factory=dict)

    def value(self, network: Network, total: int) -> float:
        """Return the bits per weight."""
        count = parameters(network)
        return total / count if count else float(BASELINE_BITS)

    def total(self, network: Network, value: Fraction) -> Fraction:
        """Return the bits of all weights."""
        return value * parameters(network)
