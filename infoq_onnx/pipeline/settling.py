"""Does the choice of bits still depend on noise? The stop rule of the trials."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import LinearConstraint, milp

from infoq_onnx.allocation.costs import Budget, total_of
from infoq_onnx.allocation.metrics import METRICS
from infoq_onnx.allocation.monotone import monotone
from infoq_onnx.allocation.program import Program, Rules, Scores, build_program
from infoq_onnx.schema import BASELINE_BITS, Bound, MeasurementSettings, Network, Score, Unit, units_of

TOLERATED = 0.03
"""Regret at which trials stop: the choice is then within 3 % of the best for the true scores, on average."""
RESAMPLES = 8
"""Number of times that the scores are drawn anew within their standard errors."""
SHARES = (0.1, 0.25, 0.4)
"""Budgets of the fan: shares of the way from the lowest to the highest cost. Looser budgets hardly depend on scores."""
_METRICS = ("size", "avg_act_bits")
"""Metrics of the budgets. Neither multiplies bits with bits, so that the relaxed program is linear."""


def regret(network: Network, scores: Sequence[Score], settings: MeasurementSettings) -> float:
    """Estimate how much worse the chosen bits are than the best bits, because the scores are noisy.

    The scores are drawn anew within their standard errors. For each draw and each of a fan of budgets, the total score
    of the bits chosen by the original scores is compared with that of the bits chosen by the draw. The choices solve
    the relaxed program, in which a unit may have a mixture of bit-widths: it is solved in a millisecond, and its total
    is not lifted at random by what whole choices leave of a budget.

    Parameters
    ----------
    network : the network
    scores : scores with standard errors, which are taken to be the same share of all scores of a unit
    settings : the bit-widths, the kinds of units that were tried, and the seed

    Returns
    -------
    float
        Mean over draws and budgets of the excess, as a share of the total score of the better bits.
    """
    random = np.random.default_rng(np.random.SeedSequence((settings.seed, 3)))
    by_unit: dict[Unit, dict[int, Score]] = {}
    for score in scores:
        by_unit.setdefault(score.unit, {})[score.bits] = score
    values = {unit: {b: score.value for b, score in widths.items()} for unit, widths in by_unit.items()}
    spreads = {unit: _spread(list(widths.values())) for unit, widths in by_unit.items()}
    draws = [
        {unit: {b: value * factor for b, value in values[unit].items()} for unit, factor in _factors(spreads, random)}
        for _ in range(RESAMPLES)
    ]
    excesses = []
    rules = Rules(settings.bits, weight_only=settings.weight_only)
    for budgets in _fan(network, values, settings.bits):
        chosen = _mixture(build_program(network, _scores(values), budgets, rules))
        for drawn in draws:
            program = build_program(network, _scores(drawn), budgets, rules)
            scored = np.concatenate(program.scores)
            least, found = (float(scored @ mixture) for mixture in (_mixture(program), chosen))
            excesses.append(max(0.0, found - least) / least if least > 0 else 0.0)
    return float(np.mean(excesses)) if excesses else 0.0


def _spread(scores: Sequence[Score]) -> float:
    """Return the standard error of a unit's scores as a share of them: that of the best known bit-width.

    More images do not help where a bit-width was not tried, which is what makes the errors of others larger.
    """
    return min((score.se / score.value for score in scores if score.value > 0), default=0.0)


def _factors(spreads: Mapping[Unit, float], random: np.random.Generator) -> Iterator[tuple[Unit, float]]:
    for unit, spread in spreads.items():
        yield unit, math.exp(random.standard_normal() * math.sqrt(math.log1p(spread**2)))


def _fan(
    network: Network, values: Mapping[Unit, Mapping[int, float]], bits: Sequence[int]
) -> Iterator[tuple[Budget, ...]]:
    """Yield sets of budgets, from tight to loose: one on the bits of all weights, one on those of all activations."""
    narrow, wide = (
        {unit: end(bits) if unit in values else BASELINE_BITS for unit in units_of(network)} for end in (min, max)
    )
    metrics = [metric for name in _METRICS if (metric := METRICS[name]).terms(network)]
    for share in SHARES:
        budgets = []
        for metric in metrics:
            low, high = (total_of(metric.terms(network), ends) for ends in (narrow, wide))
            limit = metric.value(network, low + math.ceil(share * (high - low)))
            budgets.append(Budget(metric, Bound(metric.name, limit, "")))
        yield tuple(budgets)


def _scores(values: Mapping[Unit, Mapping[int, float]]) -> Scores:
    kinds = {
        kind: {unit.name: widths for unit, widths in values.items() if unit.kind == kind}
        for kind in ("weight", "activation")
    }
    return Scores(monotone(kinds["weight"]), monotone(kinds["activation"]))


def _mixture(program: Program) -> npt.NDArray[np.float64]:
    """Solve the relaxed program. Return the share of every choice of every variable, as one row."""
    variables = np.repeat(np.arange(len(program.choices)), [len(choices) for choices in program.choices])
    bits = np.concatenate(program.choices)
    rows = np.zeros((len(program.limits), len(bits)))
    for row, limit in zip(rows, program.limits, strict=True):
        for amount, (variable,) in limit.terms:
            row[variables == variable] += amount * bits[variables == variable]
    uppers = np.array([[limit.upper] for limit in program.limits], dtype=np.float64)
    choices = sparse.csr_array((np.ones(len(bits)), (variables, np.arange(len(bits)))))
    scores = np.concatenate(program.scores)
    # without integrality, milp solves the linear program
    constraints = [LinearConstraint(rows / uppers, ub=1), LinearConstraint(choices, lb=1, ub=1)]
    return np.asarray(milp(scores / (scores.max() or 1.0), constraints=constraints).x, dtype=np.float64)
