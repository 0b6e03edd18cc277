"""What an allocation costs, counted with Python's exact integers.

Every metric is a function of one integer total, and every total is a sum of terms: an amount (MACs, parameters,
elements) times the bits of one unit, or of two. The integer program is built of the same terms, so what the solver
bounds and what is reported cannot differ.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from infoq_onnx.schema import BASELINE_BITS, Bound, Costs, Kind, Network

FLOAT_BITS = 32

Metric = Literal["bitops", "size", "compression", "avg_weight_bits", "avg_act_bits"]


@dataclass(frozen=True)
class Unit:
    """What gets a bit-width of its own: the weights of a layer, or the activation group of a tensor."""

    kind: Kind
    name: str


@dataclass(frozen=True)
class Term:
    """`amount` times the bits of each of `units` (one or two of them)."""

    amount: int
    units: tuple[Unit, ...]


def units(network: Network) -> tuple[Unit, ...]:
    """List the weights of every layer that has some, then every activation group, in topological order."""
    weights = [Unit("weight", layer.name) for layer in network.layers if layer.weight is not None]
    return (*weights, *(Unit("activation", group.name) for group in network.groups))


def uniform(network: Network, weight_bits: int, activation_bits: int) -> tuple[dict[str, int], dict[str, int]]:
    """Give all weights `weight_bits` bits and all activation groups `activation_bits` bits.

    Returns
    -------
    tuple of dict
        Bits by layer name (layers with weights only), bits by group name.
    """
    weights = {layer.name: weight_bits for layer in network.layers if layer.weight is not None}
    return weights, {group.name: activation_bits for group in network.groups}


def costs(network: Network, weight_bits: Mapping[str, int], activation_bits: Mapping[str, int]) -> Costs:
    """Count what an allocation costs (docs/methods.md, Allocation).

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
        The weight figures of a network without weights are those of 8 bits.
    """
    bits = {Unit("weight", name): b for name, b in weight_bits.items()}
    bits |= {Unit("activation", name): b for name, b in activation_bits.items()}

    def value(metric: Metric) -> float:
        return value_of(metric, network, total_of(terms(metric, network), bits))

    return Costs(
        bitops=total_of(terms("bitops", network), bits),
        weight_bytes=value("size"),
        compression=value("compression"),
        avg_weight_bits=value("avg_weight_bits"),
        avg_act_bits=value("avg_act_bits"),
    )


def terms(metric: Metric, network: Network) -> tuple[Term, ...]:
    """Split the total that `metric` is a function of into its terms.

    BitOps: MACs · b_w · b_a, or MACs · b_a · b_a' for a MatMul of two activations. Average activation bits: elements of
    the group's tensor · b_a. Everything else: parameters · b_w.
    """
    if metric == "bitops":
        products = []
        for layer in network.layers:
            left = Unit("activation", layer.groups[0])
            # a MatMul of a tensor with itself has that one group on both sides
            right = Unit("activation", layer.groups[-1]) if layer.weight is None else Unit("weight", layer.name)
            products.append(Term(layer.macs, (left, right)))
        return tuple(products)
    if metric == "avg_act_bits":
        return tuple(Term(group.elements, (Unit("activation", group.name),)) for group in network.groups)
    return tuple(
        Term(layer.parameters, (Unit("weight", layer.name),)) for layer in network.layers if layer.weight is not None
    )


def total_of(terms: tuple[Term, ...], bits: Mapping[Unit, int]) -> int:
    """Sum the terms, exactly."""
    return sum(term.amount * math.prod(bits[unit] for unit in term.units) for term in terms)


def value_of(metric: Metric, network: Network, total: int) -> float:
    """Turn a total into the metric: BitOps, bytes, a ratio or mean bits, rounded once to the nearest float64."""
    amount = sum(term.amount for term in terms(metric, network))
    if metric == "bitops":
        return float(total)
    if metric == "size":
        return total / 8
    if amount == 0:
        return FLOAT_BITS / BASELINE_BITS if metric == "compression" else float(BASELINE_BITS)
    return float_bits(network) / total if metric == "compression" else total / amount


def float_bits(network: Network) -> int:
    """Bits that the weights of the model as it was given take in float32."""
    return FLOAT_BITS * (sum(layer.parameters for layer in network.layers) - network.repeated)


def float_costs(network: Network) -> Costs:
    """Count what the model costs in float32; its weights as it was given, its BitOps with split parts."""
    counted = costs(network, *uniform(network, FLOAT_BITS, FLOAT_BITS))
    return dataclasses.replace(counted, compression=1.0, weight_bytes=float_bits(network) / 8)


def meets(bound: Bound, value: float) -> bool:
    """Whether a metric's value is within the bound: at least the limit for compression, at most for all others."""
    return value >= bound.limit if bound.metric == "compression" else value + bound.overhead <= bound.limit


def largest_total(bound: Bound, network: Network) -> int | None:
    """Largest total within the bound, or None when even the baseline (8 bits for all) is within it.

    It is the largest whose *reported* value is: a limit taken from a reported value, such as 32/3 rounded to a float,
    is met by the allocation it was taken from.
    """
    parts = terms(bound.metric, network)
    amount = sum(term.amount for term in parts)
    baseline = total_of(parts, dict.fromkeys(units(network), BASELINE_BITS))
    if meets(bound, value_of(bound.metric, network, baseline)):
        return None
    limit = Fraction(bound.limit) - Fraction(bound.overhead)
    exact: dict[Metric, Callable[[], Fraction]] = {
        "bitops": lambda: limit,
        "size": lambda: 8 * limit,
        "compression": lambda: float_bits(network) / limit,
        "avg_weight_bits": lambda: limit * amount,
        "avg_act_bits": lambda: limit * amount,
    }
    total = math.floor(exact[bound.metric]())
    while meets(bound, value_of(bound.metric, network, total + 1)):
        total += 1
    return total
