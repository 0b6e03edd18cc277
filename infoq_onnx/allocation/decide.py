"""From an analysis and budgets to an allocation."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import PurePath

from infoq_onnx.allocation.bounds import parse_pins
from infoq_onnx.allocation.costs import Budget, costs, uniform
from infoq_onnx.allocation.monotone import monotone
from infoq_onnx.allocation.program import Rules, Scores
from infoq_onnx.allocation.solve import solve
from infoq_onnx.errors import SettingsError
from infoq_onnx.schema import (
    ALLOCATION_VERSION,
    BASELINE_BITS,
    EXACT_BITS,
    Allocation,
    AllocationSettings,
    Analysis,
    Bound,
    Score,
)


def budget_label(bounds: Sequence[Budget], uniform_bits: tuple[int, int] | None, weight_only: bool) -> str:
    """Name a budget in one word that fits a file name, e.g. "bitops-23.04G" or "compression-10.66-w"."""
    if uniform_bits is not None:
        return f"uniform-{uniform_bits[0]}-{BASELINE_BITS if weight_only else uniform_bits[1]}"
    texts = [f"{budget.metric.name} {_without_folder(budget.bound)}" for budget in bounds]
    parts = ["-".join(re.findall(r"[\w.]+", text)) for text in texts]
    return "-".join([*parts, *(["weight_only"] if weight_only else [])])


def _without_folder(bound: Bound) -> str:
    """Return what the user wrote, without the folder that a table lies in."""
    return PurePath(bound.text).name if bound.table_sha256 else bound.text


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
                f"`uniform_bits` {weights}/{activations}: {width} is not among the analysed bits "
                f"{', '.join(map(str, found.settings.bits))}"
            )
    bits = uniform(found.network, weights, activations)
    if weights == activations == BASELINE_BITS:
        narrowed = {layer: EXACT_BITS if layer in saturating else width for layer, width in bits.weights.items()}
        bits = bits._replace(weights=narrowed)
    return Allocation(
        schema=ALLOCATION_VERSION,
        model_sha256=found.model.sha256,
        analysis_sha256="",
        scores_sha256="",
        criterion="uniform",
        alpha=1.0,
        bounds=(),
        pins=(),
        weight_bits=dict(bits.weights),
        activation_bits=dict(bits.activations),
        rounding="",
        repair=False,
        costs=costs(found.network, *bits),
        score=0.0,
        optimal=False,
    )


def decide(
    found: Analysis,
    scores: Sequence[Score],
    settings: AllocationSettings,
    bounds: tuple[Budget, ...],
    widest_weight: int = BASELINE_BITS,
    saturating: Collection[str] = (),
) -> Allocation:
    """Solve the integer program for the scores of an analysis.

    Parameters
    ----------
    found : the analysis
    scores : of the settings' criterion
    settings : which widths, pins and factors; its bounds as the user wrote them are not looked at
    bounds : these are
    widest_weight : no weight gets more bits than this
    saturating : layers whose weights get 7 bits in place of 8

    Returns
    -------
    Allocation
        `analysis_sha256`, `scores_sha256`, `rounding` and `repair` are for the caller to fill in.

    Raises
    ------
    SettingsError
        The analysis has no such widths, or a pin makes no sense.
    InfeasibleBudgetError
        The message says what is reachable.
    """
    widths = sorted(set(settings.bits)) if settings.bits is not None else list(found.settings.bits)
    if unknown := sorted(set(widths) - set(found.settings.bits)):
        raise SettingsError(
            f"`bits`: {unknown[0]} was not analysed; the analysis has {', '.join(map(str, found.settings.bits))}"
        )
    by_kind: dict[str, dict[str, dict[int, float]]] = {"weight": {}, "activation": {}}
    for score in scores:
        by_kind[score.unit.kind].setdefault(score.unit.name, {})[score.bits] = score.value
    # an estimate may say that more bits are worse; they are not, so the score of fewer bits holds for more
    rules = Rules(
        bits=widths,
        pins=parse_pins(settings.pins, found.network, found.settings.bits),
        alpha=settings.alpha,
        weight_only=settings.weight_only,
        widest_weight=widest_weight,
        saturating=saturating,
    )
    solution = solve(found.network, Scores(monotone(by_kind["weight"]), monotone(by_kind["activation"])), bounds, rules)
    return Allocation(
        schema=ALLOCATION_VERSION,
        model_sha256=found.model.sha256,
        analysis_sha256="",
        scores_sha256="",
        criterion=settings.criterion,
        alpha=settings.alpha,
        bounds=tuple(budget.bound for budget in bounds),
        pins=tuple(settings.pins),
        weight_bits=solution.weight_bits,
        activation_bits=solution.activation_bits,
        rounding="",
        repair=False,
        costs=costs(found.network, solution.weight_bits, solution.activation_bits),
        score=solution.score,
        optimal=solution.optimal,
    )
