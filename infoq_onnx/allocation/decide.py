"""From an analysis and budgets to an allocation."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from infoq_onnx.allocation.bounds import Pins, parse_pins
from infoq_onnx.allocation.costs import costs, uniform
from infoq_onnx.allocation.monotone import monotone
from infoq_onnx.allocation.solve import solve
from infoq_onnx.errors import SettingsError
from infoq_onnx.schema import BASELINE_BITS, EXACT_BITS, SCHEMA_VERSION, Allocation, Analysis, Bound


def budget_label(bounds: Sequence[Bound], uniform_bits: tuple[int, int] | None, weight_only: bool) -> str:
    """Name a budget in one word that fits a file name, e.g. "bitops-23.04G" or "compression-10.66-w"."""
    if uniform_bits is not None:
        return f"uniform-{uniform_bits[0]}-{BASELINE_BITS if weight_only else uniform_bits[1]}"
    parts = ["-".join(re.findall(r"[\w.]+", f"{bound.metric} {bound.text}")) for bound in bounds]
    return "-".join([*parts, *(["weight_only"] if weight_only else [])])


def decide_uniform(
    found: Analysis, uniform_bits: tuple[int, int], weight_only: bool, saturating: Collection[str] = ()
) -> Allocation:
    """Give every unit the same bits, but at 8/8 the weights of `saturating` layers 7.

    Raises
    ------
    SettingsError
        A width was not analysed.
    """
    weights, activations = uniform_bits[0], BASELINE_BITS if weight_only else uniform_bits[1]
    for width in (weights, activations):
        if width not in found.settings.bits:
            raise SettingsError(
                f"--uniform {weights}/{activations}: {width} is not among the analysed bits "
                f"{', '.join(map(str, found.settings.bits))}"
            )
    bits = uniform(found.network, weights, activations)
    if weights == activations == BASELINE_BITS:
        bits = ({layer: EXACT_BITS if layer in saturating else width for layer, width in bits[0].items()}, bits[1])
    return Allocation(
        schema=SCHEMA_VERSION,
        model_sha256=found.model.sha256,
        analysis_sha256="",
        criterion="uniform",
        alpha=1.0,
        bounds=(),
        pins=(),
        weight_bits=bits[0],
        activation_bits=bits[1],
        rounding="",
        repair=False,
        costs=costs(found.network, *bits),
        score=0.0,
        optimal=False,
    )


def no_scores(found: Analysis, criterion: str) -> SettingsError:
    """Make the error for a criterion that the analysis has no scores by."""
    usable = [name for name, scores in sorted(found.scores.items()) if scores]
    advice = f"; give --criterion {' or '.join(usable)}" if usable else ""
    return SettingsError(f"the analysis has no scores by {criterion}{advice}")


def decide(
    found: Analysis,
    bounds: tuple[Bound, ...],
    pins: Sequence[str],
    weight_only: bool,
    alpha: float,
    criterion: str,
    bits: Sequence[int] | None,
    widest_weight: int = BASELINE_BITS,
    saturating: Collection[str] = (),
) -> Allocation:
    """Solve the integer program for the scores of an analysis.

    Parameters
    ----------
    found : the analysis
    bounds, pins, weight_only, alpha : see `solve`; pins as the user writes them
    criterion : whose scores
    bits : widths to choose among; None for all that were analysed
    widest_weight : no weight gets more bits than this
    saturating : layers whose weights get 7 bits in place of 8

    Returns
    -------
    Allocation
        `analysis_sha256`, `rounding` and `repair` are for the caller to fill in.

    Raises
    ------
    SettingsError
        The analysis has no such scores or widths, or a pin makes no sense.
    InfeasibleBudgetError
        The message says what is reachable.
    """
    if not found.scores.get(criterion):
        raise no_scores(found, criterion)
    widths = sorted(set(bits)) if bits is not None else list(found.settings.bits)
    if unknown := sorted(set(widths) - set(found.settings.bits)):
        raise SettingsError(
            f"--bits: {unknown[0]} was not analysed; the analysis has {', '.join(map(str, found.settings.bits))}"
        )
    scores: dict[str, dict[str, dict[int, float]]] = {"weight": {}, "activation": {}}
    for score in found.scores[criterion]:
        scores[score.kind].setdefault(score.unit, {})[score.bits] = score.value
    # an estimate may say that more bits are worse; they are not, so the score of fewer bits holds for more
    parsed: Pins = parse_pins(pins, found.network, found.settings.bits)
    solution = solve(
        found.network,
        monotone(scores["weight"]),
        monotone(scores["activation"]),
        bounds,
        parsed,
        bits=widths,
        alpha=alpha,
        weight_only=weight_only,
        widest_weight=widest_weight,
        saturating=saturating,
    )
    return Allocation(
        schema=SCHEMA_VERSION,
        model_sha256=found.model.sha256,
        analysis_sha256="",
        criterion=criterion,
        alpha=alpha,
        bounds=bounds,
        pins=tuple(pins),
        weight_bits=solution.weight_bits,
        activation_bits=solution.activation_bits,
        rounding="",
        repair=False,
        costs=costs(found.network, solution.weight_bits, solution.activation_bits),
        score=solution.score,
        optimal=solution.optimal,
    )
