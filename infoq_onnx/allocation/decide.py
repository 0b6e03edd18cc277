"""Choice of an allocation from an analysis and budgets."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath

from infoq_onnx.allocation.bounds import parse_pins
from infoq_onnx.allocation.costs import Budget, costs, uniform
from infoq_onnx.allocation.monotone import monotone
from infoq_onnx.allocation.program import Rules, Scores, build_program
from infoq_onnx.allocation.solve import solve
from infoq_onnx.errors import SettingsError, setting
from infoq_onnx.schema import (
    ALLOCATION_VERSION,
    BASELINE_BITS,
    EXACT_BITS,
    Allocation,
    AllocationSettings,
    Analysis,
    Bound,
    Score,
    units_of,
)


def budget_label(bounds: Sequence[Budget], uniform_bits: tuple[int, int] | None, weight_only: bool) -> str:
    """Return a label of the bounds for file names, e.g. "bitops-23.04G" or "compression-10.66-weight_only".

    Parameters
    ----------
    bounds : the budgets
    uniform_bits : (weights, activations) for uniform bits, else None
    weight_only : activations keep 8 bits
    """
    if uniform_bits is not None:
        return f"uniform-{uniform_bits[0]}-{BASELINE_BITS if weight_only else uniform_bits[1]}"
    texts = [f"{budget.metric.name} {_without_folder(budget.bound)}" for budget in bounds]
    parts = ["-".join(re.findall(r"[\w.]+", text)) for text in texts]
    return "-".join([*parts, *(["weight_only"] if weight_only else [])])


def _without_folder(bound: Bound) -> str:
    """Return the bound as written by the user, without the folder of a table."""
    return PurePath(bound.text).name if bound.table_sha256 else bound.text


def require_analysed(found: Analysis, uniform_bits: tuple[int, int], weight_only: bool) -> None:
    """Check that uniform bits were analysed. With `weight_only`, activations keep 8 bits.

    Raises
    ------
    SettingsError
        A bit-width was not analysed.
    """
    weights, activations = uniform_bits[0], BASELINE_BITS if weight_only else uniform_bits[1]
    for width in (weights, activations):
        if width not in found.settings.bits:
            raise SettingsError(
                f"{setting('uniform_bits')} {weights}/{activations}: {width} was not analysed; choose among "
                f"{', '.join(map(str, found.settings.bits))}"
            )


def decide_uniform(
    found: Analysis, uniform_bits: tuple[int, int], weight_only: bool, saturating: Collection[str] = ()
) -> Allocation:
    """Give every unit the same bits. At 8/8, the weights of `saturating` layers get 7 bits.

    Parameters
    ----------
    found : the analysis
    uniform_bits : (weights, activations)
    weight_only : activations keep 8 bits
    saturating : names of layers whose sums may saturate with 8-bit weights

    Returns
    -------
    Allocation
        The caller fills in `analysis_sha256`, `rounding` and `repair`.

    Raises
    ------
    SettingsError
        A bit-width was not analysed.
    """
    weights, activations = uniform_bits[0], BASELINE_BITS if weight_only else uniform_bits[1]
    require_analysed(found, uniform_bits, weight_only)
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
    weights: Mapping[str, Collection[int]] | None = None,
    saturating: Collection[str] = (),
) -> Allocation:
    """Solve the integer program for the scores of an analysis.

    Parameters
    ----------
    found : the analysis
    scores : scores by the criterion of `settings`
    settings : bit-widths, pins and factors; the bounds in the settings are ignored
    bounds : the parsed bounds
    weights : layer → bits to which its weights are restricted, among those of `weight_choices`; None: no restriction
    saturating : names of layers whose weights get 7 bits instead of 8

    Returns
    -------
    Allocation
        The caller fills in `analysis_sha256`, `scores_sha256`, `rounding` and `repair`.

    Raises
    ------
    SettingsError
        A bit-width was not analysed, or a pin is invalid.
    InfeasibleBudgetError
        No allocation meets the bounds. The message states what is reachable.
    """
    rules = dataclasses.replace(_rules(found, settings, saturating), weights=weights or {})
    solution = solve(found.network, _monotone(scores), bounds, rules)
    return Allocation(
        schema=ALLOCATION_VERSION,
        model_sha256=found.model.sha256,
        analysis_sha256="",
        scores_sha256="",
        criterion=settings.criterion or found.default_criterion,
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


def weight_choices(
    found: Analysis, scores: Sequence[Score], settings: AllocationSettings, saturating: Collection[str] = ()
) -> dict[str, tuple[int, ...]]:
    """Return the bits that the weights of each layer can have, ascending. The parameters are those of `decide`."""
    program = build_program(found.network, _monotone(scores), (), _rules(found, settings, saturating))
    units = units_of(found.network)
    return {unit.name: bits for unit, bits in zip(units, program.choices, strict=True) if unit.kind == "weight"}


def _rules(found: Analysis, settings: AllocationSettings, saturating: Collection[str]) -> Rules:
    widths = sorted(set(settings.bits)) if settings.bits is not None else list(found.settings.bits)
    if unknown := sorted(set(widths) - set(found.settings.bits)):
        raise SettingsError(
            f"{setting('bits')}: {unknown[0]} was not analysed; choose among {', '.join(map(str, found.settings.bits))}"
        )
    return Rules(
        bits=widths,
        pins=parse_pins(settings.pins, found.network, found.settings.bits),
        alpha=settings.alpha,
        weight_only=settings.weight_only,
        tried_weights_only=found.settings.weight_only,
        saturating=saturating,
    )


def _monotone(scores: Sequence[Score]) -> Scores:
    by_kind: dict[str, dict[str, dict[int, float]]] = {"weight": {}, "activation": {}}
    for score in scores:
        by_kind[score.unit.kind].setdefault(score.unit.name, {})[score.bits] = score.value
    # noise can make more bits score worse; `monotone` then uses the score of fewer bits for more bits as well
    return Scores(monotone(by_kind["weight"]), monotone(by_kind["activation"]))
