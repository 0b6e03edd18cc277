"""The integer program as arrays: what a solver sees, which knows nothing of networks.

The paper's Eq. 5: choose one width for every unit so that Σ S_w + α · Σ S_a is least and every total stays within its
limit. Shared activations are one variable, so a layer never gets two input widths.
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
from infoq_onnx.errors import AnalysisError, SettingsError
from infoq_onnx.schema import BASELINE_BITS, BITS, EXACT_BITS, Network, Unit, units_of

ByBits = Mapping[str, Mapping[int, float]]
"""Layer or group → bits → score."""


class Scores(NamedTuple):
    """What each width of each unit costs in accuracy. The baseline of 8 bits scores 0 where it is left out."""

    weights: ByBits
    activations: ByBits


@dataclass(frozen=True)
class Rules:
    """Which widths units may take, whatever the bounds, and how their scores are added."""

    bits: Sequence[int] = BITS
    """Widths to choose among; a unit takes those of them that it has a score for."""
    pins: Pins = field(default_factory=Pins)
    """A pin holds whatever `bits` and the scores are; a pinned width without a score counts as 0."""
    alpha: float = 1.0
    """Factor on activation scores."""
    weight_only: bool = False
    """Keep all activations at 8 bits."""
    widest_weight: int = BASELINE_BITS
    """No weight gets more bits than this."""
    saturating: Collection[str] = ()
    """Layers whose weights get 7 bits in place of 8, unless a pin puts their activations below 8."""


@dataclass(frozen=True)
class Limit:
    """Σ amount · b_u (· b_v) over `terms`, and Σ cost[b_u, b_v] over `tables`, ≤ `upper`, in exact integers."""

    name: str
    terms: tuple[tuple[int, tuple[int, ...]], ...]
    """Amount, and the one or two variables whose bits it is multiplied by (the same one twice for a square)."""
    upper: int
    tables: tuple[tuple[tuple[int, ...], Mapping[tuple[int, ...], int]], ...] = ()
    """One or two variables, and what their bits cost; never less for more bits."""


@dataclass(frozen=True, eq=False)
class Program:
    """Pick one choice for every variable: the least summed score within all limits."""

    choices: tuple[tuple[int, ...], ...]
    """Bits that each variable may take, ascending."""
    scores: tuple[NDArray[np.float64], ...]
    """Score of each choice, of the shape of `choices`."""
    limits: tuple[Limit, ...]


@dataclass(frozen=True)
class Outcome:
    """What a solver found."""

    picks: tuple[int, ...]
    """Index of the choice of every variable."""
    optimal: bool
    """No choices within the limits score lower: proved, not hoped."""


def build_program(network: Network, scores: Scores, bounds: Sequence[Budget], rules: Rules) -> Program:
    """Turn a network, its scores and its bounds into arrays; variables are in the order of `schema.units_of`.

    Parameters
    ----------
    network : Network
    scores : Scores
        A unit without scores stays at 8 bits.
    bounds : sequence of Budget
    rules : Rules

    Raises
    ------
    SettingsError
        `alpha` is negative or not finite, a unit has no score at any of `bits`, a pin lowers an activation that
        `weight_only` keeps, or a weight cannot have as few bits as `widest_weight`.
    AnalysisError
        A score is not finite.
    """
    if not 0 <= rules.alpha < math.inf:
        raise SettingsError(f"`alpha` {rules.alpha}: the factor on activation scores must be zero or more, and finite")
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
    """Score of every width that the unit may take, widths ascending; if `narrowed`, 7 bits stand in for 8."""
    widest = rules.widest_weight if unit.kind == "weight" else BASELINE_BITS
    scores = {BASELINE_BITS: 0.0, **scores} if scores else {}
    bits, pinned = rules.bits, rules.pins.bits.get(unit)
    if rules.weight_only and unit.kind == "activation":
        if pinned not in (None, BASELINE_BITS):
            raise SettingsError(f"a pin puts activation {unit.name} at {pinned} bits, but weight-only keeps it at 8")
        pinned = BASELINE_BITS
    if pinned is None and not scores:
        pinned = BASELINE_BITS
    if narrowed:
        scores = _without_baseline(scores)
        pinned = EXACT_BITS if pinned == BASELINE_BITS else pinned
        bits = [min(width, EXACT_BITS) for width in bits]
    if pinned is not None and pinned > widest:
        raise SettingsError(f"weight of {unit.name} is kept at {pinned} bits, but the target takes {widest} at most")
    if pinned is not None:
        return {pinned: scores.get(pinned, 0.0)}
    allowed = {width: scores[width] for width in sorted(set(bits)) if width in scores and width <= widest}
    if not allowed:
        measured = ", ".join(map(str, sorted(scores)))
        raise SettingsError(f"{unit.kind} of {unit.name} was measured at {measured} bits: allow one of these")
    return allowed


def _without_baseline(scores: Mapping[int, float]) -> dict[int, float]:
    """Put 7 bits in the place of 8.

    Where 7 bits were not tried, the score of the next fewer stands in, a quarter of it for each bit between: what the
    squared error of rounding falls by.
    """
    known = {width: score for width, score in scores.items() if width < BASELINE_BITS}
    if scores and EXACT_BITS not in known:
        below = max(known, default=EXACT_BITS)
        known[EXACT_BITS] = known.get(below, 0.0) / 4 ** (EXACT_BITS - below)
    return known


def bits_of(program: Program, picks: Sequence[int]) -> tuple[int, ...]:
    """Bits of every variable, given the index of its choice."""
    return tuple(choices[pick] for choices, pick in zip(program.choices, picks, strict=True))


def score_of(program: Program, picks: Sequence[int]) -> float:
    """Sum of the picked scores, correctly rounded."""
    return math.fsum(scores[pick] for scores, pick in zip(program.scores, picks, strict=True))


def total_of(limit: Limit, bits: Sequence[int]) -> int:
    """Sum that `limit` bounds, exactly."""
    products = sum(amount * math.prod(bits[v] for v in variables) for amount, variables in limit.terms)
    return products + sum(costs[tuple(bits[v] for v in variables)] for variables, costs in limit.tables)


def is_feasible(program: Program, picks: Sequence[int]) -> bool:
    """Whether every limit holds, to the last integer."""
    bits = bits_of(program, picks)
    return all(total_of(limit, bits) <= limit.upper for limit in program.limits)
