"""The costs of an allocation, counted with Python's exact integers.

Every metric is a function of one integer total, and every total is a sum of terms (`metrics.base`). The integer program
uses the same terms, so the total that the solver bounds and the reported cost cannot differ.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from infoq_onnx.allocation.metrics import METRICS, Metric, Term, float_bits
from infoq_onnx.allocation.metrics.weights import FLOAT_BITS
from infoq_onnx.schema import BASELINE_BITS, Bits, Bound, Costs, Network, Unit, units_of


@dataclass(frozen=True)
class Budget:
    """A bound with its metric."""

    metric: Metric
    bound: Bound

    def meets(self, value: float) -> bool:
        """Return whether a value of the metric is within the bound."""
        if self.metric.at_most:
            return value + self.bound.overhead <= self.bound.limit
        return value >= self.bound.limit

    def largest_total(self, network: Network) -> int | None:
        """Return the largest total within the bound, or None if the baseline (8 bits for all units) is within it.

        The *reported* value of the total decides. A limit that was copied from a reported value, such as 32/3 rounded
        to a float, is therefore met by the allocation it came from.
        """
        metric = self.metric
        baseline = total_of(metric.terms(network), dict.fromkeys(units_of(network), BASELINE_BITS))
        if self.meets(metric.value(network, baseline)):
            return None
        total = math.floor(metric.total(network, Fraction(self.bound.limit) - Fraction(self.bound.overhead)))
        while self.meets(metric.value(network, total + 1)):
            total += 1
        return total

    def value(self, network: Network, bits: Mapping[Unit, int]) -> float:
        """Return the value of the metric for an assignment of bits."""
        return self.metric.value(network, total_of(self.metric.terms(network), bits))


def uniform(network: Network, weight_bits: int, activation_bits: int) -> Bits:
    """Give all weights `weight_bits` bits and all activation groups `activation_bits` bits.

    Returns
    -------
    Bits
    """
    weights = {layer.name: weight_bits for layer in network.layers if layer.weight is not None}
    return Bits(weights, {group.name: activation_bits for group in network.groups})


def costs(network: Network, weight_bits: Mapping[str, int], activation_bits: Mapping[str, int]) -> Costs:
    """Count the costs of an allocation (docs/methods.md, Allocation).

    Parameters
    ----------
    network : Network
    weight_bits : mapping of str to int
        Bits of every layer that has weights.
    activation_bits : mapping of str to int
        Bits of every activation group.

    Returns
    -------
    Costs
        For a network without weights, mean weight bits and compression are those of 8 bits.
    """
    bits = by_unit(weight_bits, activation_bits)

    def value(name: str) -> float:
        metric = METRICS[name]
        return metric.value(network, total_of(metric.terms(network), bits))

    return Costs(
        bitops=total_of(METRICS["bitops"].terms(network), bits),
        weight_bytes=value("size"),
        compression=value("compression"),
        avg_weight_bits=value("avg_weight_bits"),
        avg_act_bits=value("avg_act_bits"),
    )


def by_unit(weight_bits: Mapping[str, int], activation_bits: Mapping[str, int]) -> dict[Unit, int]:
    """Combine the bits of weights and of activation groups into one mapping by unit."""
    bits = {Unit("weight", name): b for name, b in weight_bits.items()}
    return bits | {Unit("activation", name): b for name, b in activation_bits.items()}


def total_of(terms: Iterable[Term], bits: Mapping[Unit, int]) -> int:
    """Return the exact sum of the terms for an assignment of bits."""
    return sum(term.cost(bits) for term in terms)


def float_costs(network: Network) -> Costs:
    """Count the costs of the model in float32. The parts of split channels count in BitOps, but not in weights."""
    counted = costs(network, *uniform(network, FLOAT_BITS, FLOAT_BITS))
    return dataclasses.replace(counted, compression=1.0, weight_bytes=float_bits(network) / 8)
