"""The integer program as arrays, the only input of the solvers.

The program is the paper's Eq. 5: choose one bit-width per unit so that Σ S_w + α · Σ S_a is minimal and every total is
within its limit. Layers that share an input share one variable for it, so the input has a single bit-width.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infoq_onnx.allocation.bounds import Pins
from infoq_onnx.allocation.costs import Budget
from infoq_onnx.errors import AnalysisError, SettingsError, setting
from infoq_onnx.schema import BASELINE_BITS, BITS, EXACT_BITS, Network, Unit, units_of

ByBits = Mapping[str, Mapping[int, float]]
"""Layer or group → bits → score."""


class Scores(NamedTuple):
    """Scores of each unit at each bit-width. A missing score at 8 bits, the baseline, is 0."""

    weights: ByBits
    activations: ByBits


@dataclass(frozen=True)
class Rules:
    """Bit-widths that units may have, independent of the bounds, and the factor on activation scores."""

    bits: Sequence[int] = BITS
    """Bit-widths to choose among. A unit can only have those for which it has a score."""
    pins: Pins = field(default_factory=Pins)
    """Pins override `bits` and need no score; a pinned bit-width without a score counts as 0."""
    alpha: float = 1.0
    """Factor on activation scores."""
    weight_only: bool = False
    """Keep all activations at 8 bits."""
    tried_weights_only: bool = False
    """The analysis tried weights only, so that activations have no scores."""
    weights: Mapping[str, Collection[int]] = field(default_factory=dict)
    """Layer → bits to which its weights are restricted; at least one of them is a choice without this restriction."""
    saturating: Collection[str] = ()
    """Layers whose weights get 7 bits instead of 8, unless a pin gives their activations fewer than 8 bits."""


@dataclass(frozen=True)
class Limit:
    """The constraint Σ amount · b_u (· b_v) over `terms` + Σ cost[b_u, b_v] over `tables` ≤ `upper`, in integers."""

    name: str
    terms: tuple[tuple[int, tuple[int, ...]], ...]
    """Amount, and the one or two variables whose bits it is multiplied by (the same variable twice for a square)."""
    upper: int
    tables: tuple[tuple[tuple[int, ...], Mapping[tuple[int, ...], int]], ...] = ()
    """One or two variables, and the cost of their bits, which never falls with more bits."""


@dataclass(frozen=True, eq=False)
class Program:
    """An integer program: pick one choice per variable so that the sum of scores is minimal within all limits."""

    choices: tuple[tuple[int, ...], ...]
    """Bits that each variable can have, ascending."""
    scores: tuple[NDArray[np.float64], ...]
    """Score of each choice, in the shape of `choices`."""
    limits: tuple[Limit, ...]


@dataclass(frozen=True)
class Outcome:
    """The result of a solver."""

    picks: tuple[int, ...]
    """Index of the picked choice of every variable."""
    optimal: bool
    """The solver proved that no choices within the limits have a lower score."""


def build_program(network: Network, scores: Scores, bounds: Sequence[Budget], rules: Rules) -> Program:
    """Build the integer program of a network, its scores and bounds. Variables are in the order of `schema.units_of`.

    Parameters
    ----------
    network : Network
    scores : Scores
        A unit without scores keeps 8 bits.
    bounds : sequence of Budget
    rules : Rules

    Returns
    -------
    Program

    Raises
    ------
    SettingsError
        `alpha` is negative or not finite, a unit has no score at any of `bits`, or a pin lowers an activation that
        `weight_only` keeps.
    AnalysisError
        A score is not finite.
    """
    if not 0 <= rules.alpha < math.inf:
        raise SettingsError(
            f"{setting('alpha')} {rules.alpha}: the factor on activation scores must be zero or more, and finite"
        )
    choices, columns = [], []
    pinned = rules.pins.bits.items()
    below = {unit.name for unit, width in pinned if unit.kind == "activation" and width < BASELINE_BITS}
    saturating = {
        layer.name for layer in network.layers if layer.name in rules.saturating and layer.groups[0] not in below
    }
    for unit in units_of(network):
        is_weight = unit.kind == "weight"
        known = (scores.weights if is_weight else scores.activations).get(unit.name, {})
        by_bits = _allowed(unit, known, rules, narrowed=is_weight and unit.name in saturating)
        if is_weight and unit.name in rules.weights:
            by_bits = {width: score for width, score in by_bits.items() if width in rules.weights[unit.name]}
        for width, score in by_bits.items():
            if not math.isfinite(score):
                raise AnalysisError(f"the {unit.kind} score of {unit.name} at {width} bits is {score}; analyze again")
        choices.append(tuple(by_bits))
        columns.append((1.0 if is_weight else rules.alpha) * np.array(list(by_bits.values()), dtype=np.float64))
    index = {unit: i for i, unit in enumerate(units_of(network))}
    limits = []
    for budget in bounds:
        upper = budget.largest_total(network)
        if upper is not None:
            terms = [(term, tuple(index[unit] for unit in term.units)) for term in budget.metric.terms(network)]
            products = tuple((term.amount, variables) for term, variables in terms if term.table is None)
            tables = tuple((variables, term.table) for term, variables in terms if term.table is not None)
            limits.append(Limit(budget.metric.name, products, upper, tables))
    return Program(tuple(choices), tuple(columns), tuple(limits))


def _allowed(unit: Unit, scores: Mapping[int, float], rules: Rules, *, narrowed: bool) -> dict[int, float]:
    """Return the score of every bit-width that a unit can have, in ascending order. If `narrowed`, 7 bits replace 8."""
    scores = {BASELINE_BITS: 0.0, **scores} if scores else {}
    bits, pinned = rules.bits, rules.pins.bits.get(unit)
    if rules.weight_only and unit.kind == "activation":
        if pinned not in (None, BASELINE_BITS):
            raise SettingsError(
                f"a pin puts activation {unit.name} at {pinned} bits, but {setting('weight_only')} keeps it at 8: drop "
                "one of the two"
            )
        pinned = BASELINE_BITS
    if pinned is None and not scores:
        pinned = BASELINE_BITS
    if narrowed:
        scores = _without_baseline(scores)
        pinned = EXACT_BITS if pinned == BASELINE_BITS else pinned
        bits = [min(width, EXACT_BITS) for width in bits]
    if pinned is not None:
        return {pinned: scores.get(pinned, 0.0)}
    allowed = {width: scores[width] for width in sorted(set(bits)) if width in scores}
    if not allowed:
        measured = ", ".join(map(str, sorted(scores)))
        raise SettingsError(
            f"{unit.kind} of {unit.name} was measured at {measured} bits: allow one of these with {setting('bits')}"
        )
    return allowed


def _without_baseline(scores: Mapping[int, float]) -> dict[int, float]:
    """Replace 8 bits by 7 bits.

    If 7 bits were not tried, their score is extrapolated from the next lower bit-width, divided by 4 per bit of
    difference, as the squared rounding error falls.
    """
    known = {width: score for width, score in scores.items() if width < BASELINE_BITS}
    if scores and EXACT_BITS not in known:
        below = max(known, default=EXACT_BITS)
        known[EXACT_BITS] = known.get(below, 0.0) / 4 ** (EXACT_BITS - below)
    return known


def bits_of(program: Program, picks: Sequence[int]) -> tuple[int, ...]:
    """Return the bits of every variable for the picked choices."""
    return tuple(choices[pick] for choices, pick in zip(program.choices, picks, strict=True))


def score_of(program: Program, picks: Sequence[int]) -> float:
    """Return the correctly rounded sum of the picked scores."""
    return math.fsum(scores[pick] for scores, pick in zip(program.scores, picks, strict=True))


def total_of(limit: Limit, bits: Sequence[int]) -> int:
    """Return the exact total that `limit` bounds, for the bits of all variables."""
    products = sum(amount * math.prod(bits[v] for v in variables) for amount, variables in limit.terms)
    return products + sum(costs[tuple(bits[v] for v in variables)] for variables, costs in limit.tables)


def is_feasible(program: Program, picks: Sequence[int]) -> bool:
    """Return whether the picked choices meet every limit exactly."""
    bits = bits_of(program, picks)
    return all(total_of(limit, bits) <= limit.upper for limit in program.limits)
