"""Choice of a bit-width for every unit from scores and budgets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from infoq_onnx.allocation.bounds import Pins
from infoq_onnx.allocation.costs import Budget
from infoq_onnx.allocation.program import Program, Rules, Scores, bits_of, build_program, is_feasible, score_of
from infoq_onnx.allocation.solvers import SOLVERS
from infoq_onnx.allocation.units import format_quantity
from infoq_onnx.errors import InfeasibleBudgetError, SettingsError, enumerated, setting
from infoq_onnx.schema import BASELINE_BITS, Network, Unit, units_of

TIME_LIMIT = 60.0
"""Default time limit of the solver, in seconds."""


@dataclass(frozen=True)
class Solution:
    """Bits of every layer with weights and of every activation group, with their score."""

    weight_bits: dict[str, int]
    activation_bits: dict[str, int]
    score: float
    """Σ S_w + α · Σ S_a."""
    optimal: bool
    """The solver proved that no allocation within the bounds has a lower score."""


def solve(
    network: Network,
    scores: Scores,
    bounds: Sequence[Budget],
    rules: Rules | None = None,
    *,
    solver: str = "highs",
    time_limit: float | None = TIME_LIMIT,
) -> Solution:
    """Find the allocation with the lowest score within the bounds (the paper's Eq. 5).

    The remaining budget is spent: in the order of `schema.units_of`, each unit gets the most bits that the bounds allow
    without raising the score. If all units at 8 bits are within the bounds and no score is below that of 8 bits, the
    result is therefore 8 bits for all units.

    Parameters
    ----------
    network : Network
    scores : Scores
    bounds : sequence of Budget
    rules : Rules or None
        Bit-widths that units may have; None: the defaults.
    solver : str
        A key of `solvers.SOLVERS`.
    time_limit : float or None
        Seconds for the solver; None: no limit. If the solver hits the limit, the result is not `optimal` and can depend
        on the speed of the machine. Only networks with many layers and nearly equal scores come near the default.

    Returns
    -------
    Solution

    Raises
    ------
    InfeasibleBudgetError
        No allocation meets the bounds. The message states what is reachable.
    SettingsError
        The solver does not exist, or `program.build_program` rejects a setting.
    AnalysisError
        A score is not finite.
    """
    if solver not in SOLVERS:
        raise SettingsError(f"there is no solver {solver!r}: choose among {', '.join(SOLVERS)}")
    rules = rules or Rules()
    program = build_program(network, scores, bounds, rules)
    variables = units_of(network)
    _require_reachable(network, scores, bounds, rules, _narrowest(network, program))
    outcome = SOLVERS[solver](program, time_limit)
    picks = _widen(program, outcome.picks)
    chosen = dict(zip(variables, bits_of(program, picks), strict=True))
    return Solution(
        weight_bits={unit.name: width for unit, width in chosen.items() if unit.kind == "weight"},
        activation_bits={unit.name: width for unit, width in chosen.items() if unit.kind == "activation"},
        score=score_of(program, picks),
        optimal=outcome.optimal,
    )


def _widen(program: Program, picks: Sequence[int]) -> tuple[int, ...]:
    """Raise one variable after the other to the widest choice that has no higher score and meets all limits."""
    widened = list(picks)
    for variable, scores in enumerate(program.scores):
        kept = widened[variable]
        for wider in reversed(range(kept + 1, len(scores))):
            widened[variable] = wider
            if scores[wider] <= scores[kept] and is_feasible(program, widened):
                break
            widened[variable] = kept
    return tuple(widened)


def _narrowest(network: Network, program: Program) -> dict[Unit, int]:
    variables = units_of(network)
    return dict(zip(variables, bits_of(program, [0] * len(variables)), strict=True))


def _without_scores(network: Network, scores: Scores, rules: Rules) -> list[Unit]:
    """List the units that would get fewer bits but for want of a score."""
    known = {"weight": scores.weights, "activation": scores.activations}
    return [
        unit
        for unit in units_of(network, weight_only=rules.weight_only)
        if unit not in rules.pins.bits and not known[unit.kind].get(unit.name)
    ]


def _require_reachable(
    network: Network, scores: Scores, bounds: Sequence[Budget], rules: Rules, narrowest: Mapping[Unit, int]
) -> None:
    """Raise unless the narrowest choices meet every bound.

    No metric improves when a unit gets wider. The narrowest choices are therefore the best for each bound and for all
    bounds together: bounds that can be met one by one can be met at once.

    Raises
    ------
    InfeasibleBudgetError
        The narrowest choices violate a bound.
    """
    complaints = []
    best: dict[str, float] = {}
    for budget in bounds:
        metric, bound = budget.metric, budget.bound
        reachable = budget.value(network, narrowest)
        if not budget.meets(reachable):
            extreme = "smallest" if metric.at_most else "largest"
            hint = format_quantity(reachable + bound.overhead, metric.suffixes, up=metric.at_most)
            best[metric.name] = reachable
            complaints.append(f"{setting(metric.name)} {bound.text} cannot be met: the {extreme} reachable is {hint}")
    if complaints:
        unscored = _without_scores(network, scores, rules)
        unpinned = _is_reachable(network, scores, bounds, dataclasses.replace(rules, pins=Pins()))
        ways = tuple(_other_ways(network, scores, bounds, rules))
        told = enumerated(["loosen the budget", *(without(rules.pins.texts) if unpinned else []), *ways], "or")
        raise InfeasibleBudgetError(
            f"{'; '.join(complaints)} ({_describe(narrowest, rules.pins, unscored)}); {told}", best, ways
        )


def without(pins: Sequence[str]) -> list[str]:
    """Return the advice to drop pins, if there are any, for a message."""
    return [] if not pins else ["drop the pin"] if len(pins) == 1 else ["drop pins"]


def _is_reachable(network: Network, scores: Scores, bounds: Sequence[Budget], rules: Rules) -> bool:
    """Return whether the narrowest choices meet every bound."""
    try:
        narrowest = _narrowest(network, build_program(network, scores, bounds, rules))
    except SettingsError:
        return False
    return all(budget.meets(budget.value(network, narrowest)) for budget in bounds)


def _other_ways(network: Network, scores: Scores, bounds: Sequence[Budget], rules: Rules) -> Iterator[str]:
    """Say by which single change, apart from fewer pins, all bounds could be met as they are."""

    def meets(rules: Rules, scores: Scores = scores) -> bool:
        return _is_reachable(network, scores, bounds, rules)

    both = dataclasses.replace(rules, weight_only=False)
    if rules.weight_only and meets(both):
        yield f"drop {setting('weight_only')}"
    # as if units without scores had one of the fewest bits
    least = {min(rules.bits): 0.0}
    weights, activations = (
        {unit.name: least for unit in _without_scores(network, scores, both) if unit.kind == kind}
        for kind in ("weight", "activation")
    )
    tried = Scores({**scores.weights, **weights}, {**scores.activations, **activations})
    if rules.tried_weights_only and activations and meets(both, tried._replace(weights=scores.weights)):
        yield f"run analyze without {setting('weight_only')}{' and drop it here' if rules.weight_only else ''}"
    if rules.tried_weights_only or rules.weight_only:
        tried = tried._replace(activations=scores.activations)
    if tried != scores and meets(rules, tried):
        # where no activation has a score, the criterion gives none to activations, whatever the images
        if scores.activations or meets(rules, tried._replace(activations=scores.activations)):
            yield "analyze more images"
        yield f"take another {setting('criterion')}"


def _describe(narrowest: Mapping[Unit, int], pins: Pins, unscored: Sequence[Unit]) -> str:
    """Say in words what the narrowest choices are."""
    weight = min((width for unit, width in narrowest.items() if unit.kind == "weight"), default=BASELINE_BITS)
    activation = min((width for unit, width in narrowest.items() if unit.kind == "activation"), default=BASELINE_BITS)
    least = {"weight": weight, "activation": activation}
    exceptions = [f"the pins {' '.join(pins.texts)}"] if pins.texts else []
    if unscored:
        exceptions.append(f"{len(unscored)} units without scores, which keep 7 or 8 bits")
    scored = narrowest.keys() - pins.bits.keys() - set(unscored)
    if wider := sum(narrowest[unit] > least[unit.kind] for unit in scored):
        exceptions.append(f"{wider} units that were not measured at so few bits")
    return f"all layers at {weight}/{activation}" + (f" but for {' and '.join(exceptions)}" if exceptions else "")
