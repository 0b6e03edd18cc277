"""`score` and `criteria`: compute scores by one criterion from the measurements of an analysis."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infoq_onnx.analyses import (
    Measurement,
    current,
    find_analysis,
    is_of,
    read_analysis,
    read_scores,
    scoring,
    with_hash,
    write_scores,
)
from infoq_onnx.data.dataset import Dataset
from infoq_onnx.errors import AnalysisError, OutputError, SettingsError, setting
from infoq_onnx.files import sha256_of
from infoq_onnx.graph.editing import expose
from infoq_onnx.graph.session import Runtime, open_session, using
from infoq_onnx.preparation import PreparedModel, calibration_again, memory_bytes, prepare_again, require_there
from infoq_onnx.quantize.table import GridTable, load_table
from infoq_onnx.reporter import Reporter, Silent
from infoq_onnx.schema import SCORES_VERSION, Analysis, CriterionInfo, ScoreTable, typed, units_of
from infoq_onnx.sensitivity.criteria import NEEDS, Context, Criterion, Need, OptionValue, get_criteria, get_criterion
from infoq_onnx.simulate.equalization.equalize import equalized
from infoq_onnx.simulate.running.batching import batch_size, logits_of, run_batches

UNMADE = "gradients"
"""A need that cannot be computed yet."""


def criteria() -> tuple[CriterionInfo, ...]:
    """List all criteria, including those of other installed packages.

    Returns
    -------
    tuple of CriterionInfo

    Raises
    ------
    SettingsError
        The criterion of another package cannot be loaded.
    """
    return tuple(
        CriterionInfo(
            name=one.name,
            summary=one.summary,
            source=one.source,
            needs=tuple(need for need in NEEDS if need in one.needs),
            passes=one.passes,
            options={name: (option.default, option.help) for name, option in one.options.items()},
            package=one.package,
        )
        for one in get_criteria().values()
    )


@typed
def score(
    analysis: Path | str | None = None,
    *,
    criterion: str,
    options: Mapping[str, OptionValue] | None = None,
    model: Path | str | None = None,
    calib: Path | str | None = None,
    classes: Path | str | None = None,
    memory: str | int | None = None,
    reporter: Reporter | None = None,
) -> ScoreTable:
    """Score every unit by a criterion, and store the scores with the analysis.

    Parameters
    ----------
    analysis : the analysis folder; None: the newest one in the working folder
    criterion : name of the criterion, see `sensitivity.criteria`
    options : options of the criterion; options not given have their defaults
    model, calib, classes : current paths, if the files moved since the analysis; images are read only if the criterion
        needs them
    memory : approximate memory limit of the images in bytes, such as "2GiB"; None: the default
    reporter : receives progress

    Returns
    -------
    ScoreTable
        Stored in place of earlier scores by the same criterion.

    Raises
    ------
    InfoQError
        See `infoq_onnx.errors`.
    """
    reporter = reporter or Silent()
    chosen = get_criterion(criterion)
    values = chosen.settings(options or {})
    folder = Path(analysis) if analysis is not None else find_analysis()
    found, measurement = read_analysis(folder), current(folder)
    for name, place in (("model", model), ("calib", calib), ("classes", classes)):
        if place is not None:
            # also if the criterion does not need it
            require_there(name, place, given=True)
    # load the model, grids and images only if the criterion needs them, so that they may be missing otherwise
    grids = functools.cache(lambda: load_table(measurement.grids, found.network))
    allowed = memory_bytes(memory)

    @functools.cache
    def prepared() -> PreparedModel:
        again = prepare_again(found, model)
        return dataclasses.replace(again, graph=equalized(again.graph, again.network, grids().factors))

    @functools.cache
    def images() -> Dataset:
        return calibration_again(found, prepared(), calib, classes, cache_bytes=allowed)

    made = _without_images(found, prepared, grids)
    made["activations"] = lambda: partial(_activations, prepared(), images())
    made["labels"] = lambda: _labels(prepared(), images())
    with using(Runtime(found.settings.provider)):
        table = compute(measurement, found, chosen, values, made)
    if not table.scores:
        reporter.warn(f"{criterion} scores nothing here")
    write_scores(measurement, table)
    return table


def scores_for(
    measurement: Measurement,
    found: Analysis,
    criterion: str,
    prepared: PreparedModel,
    grids: GridTable,
    reporter: Reporter,
) -> ScoreTable:
    """Return the scores of an analysis by a criterion. Compute missing scores if they need no pass over the images.

    Parameters
    ----------
    measurement, found : the analysis
    criterion : name of the criterion
    prepared, grids : the analysed model, equalized, and its grids
    reporter : receives a note if scores are computed

    Returns
    -------
    ScoreTable

    Raises
    ------
    SettingsError
        The criterion does not exist, its scores are missing and need a pass over the images, or it gives no scores.
    """
    known = read_scores(measurement, criterion)
    if known is not None and is_of(known, measurement):
        table = known
    else:
        chosen = get_criterion(criterion)
        if not chosen.is_cheap():
            state = "no scores" if known is None else "older scores than trials"
            raise SettingsError(
                f"the analysis has {state} by {criterion}; make them with: "
                f"{scoring(measurement, criterion, {} if known is None else known.options)}"
            )
        options = chosen.settings({} if known is None else known.options)
        made = _without_images(found, lambda: prepared, lambda: grids)
        table = compute(measurement, found, chosen, options, made)
        reporter.note(f"computed the scores by {criterion}")
        with contextlib.suppress(OutputError):
            # if the folder cannot be written, the scores are computed again next time
            write_scores(measurement, table)
    if not table.scores:
        raise SettingsError(f"{criterion} scores nothing in this analysis; give another {setting('criterion')}")
    if told := _unscored(found, table):
        reporter.warn(told)
    return table


def refresh_scores(
    measurement: Measurement, found: Analysis, prepared: PreparedModel, grids: GridTable, reporter: Reporter
) -> None:
    """Compute the scores by all criteria that need only measurements, and update existing scores that need no images.

    Parameters
    ----------
    measurement, found : the analysis
    prepared, grids : the analysed model, equalized, and its grids
    reporter : receives warnings
    """
    for name, chosen in get_criteria().items():
        known: ScoreTable | None = None
        with contextlib.suppress(AnalysisError):
            known = read_scores(measurement, name)
        if not chosen.is_cheap() or _lacks_information(found, chosen):
            continue
        if known is None and not chosen.needs <= {"trials", "information", "local_errors"}:
            continue
        if known is not None and is_of(known, measurement):
            continue
        made = _without_images(found, lambda: prepared, lambda: grids)
        table = compute(measurement, found, chosen, chosen.settings({} if known is None else known.options), made)
        if told := _unscored(found, table):
            reporter.warn(told)
        write_scores(measurement, table)


def _unscored(found: Analysis, table: ScoreTable) -> str:
    """Say which units that were tried have no scores, and what to do; nothing where all have."""
    tried = {trial.unit for trial in found.trials}
    missing = tried - {score.unit for score in table.scores}
    # a criterion without observers leaves units out on purpose
    if not missing or not table.observers:
        return ""
    name = table.criterion
    if missing == tried:
        return (
            f"{name} scores nothing, as its observers hold no information: for {setting('criterion')} {name} give more "
            "images or other labels"
        )
    units = units_of(found.network)
    named = [f"{unit.kind} {unit.name}" for unit in sorted(missing, key=units.index)]
    listed = ", ".join(named[:3]) + (" …" if len(named) > 3 else "")
    return (
        f"{name} gives no scores to {len(missing)} of {len(tried)} units ({listed}), as the observers behind them hold "
        f"no information: by {setting('criterion')} {name} they stay at 8 bits; give more images or other labels"
    )


def compute(
    measurement: Measurement,
    found: Analysis,
    criterion: Criterion,
    options: Mapping[str, OptionValue],
    made: Mapping[Need, Callable[[], Any]],
) -> ScoreTable:
    """Compute the scores by a criterion.

    Parameters
    ----------
    measurement, found : the analysis
    criterion : the criterion
    options : values of all options of the criterion
    made : function that computes each need

    Returns
    -------
    ScoreTable

    Raises
    ------
    SettingsError
        The criterion needs gradients, which cannot be computed yet, or mutual information, which was not measured; or
        it fails.
    """
    if _lacks_information(found, criterion):
        raise SettingsError(
            f"criterion {criterion.name} needs mutual information, which was not measured: run the same "
            f"{setting('analyze')} again with {setting('observers')} selected"
        )
    if UNMADE in criterion.needs:
        raise SettingsError(f"criterion {criterion.name} needs {UNMADE}, which cannot be computed yet; choose another")
    context = Context(criterion, found.network, found.settings.bits, made)
    scored = criterion.score(context, options)
    table = ScoreTable(
        schema=SCORES_VERSION,
        criterion=criterion.name,
        options=dict(options),
        package=criterion.package,
        measured_sha256=sha256_of(measurement.analysis),
        scores=tuple(scored.scores),
        observers=tuple(scored.observers),
    )
    return with_hash(table)


def _lacks_information(found: Analysis, criterion: Criterion) -> bool:
    return "information" in criterion.needs and found.settings.observing == "none"


def _without_images(
    found: Analysis, prepared: Callable[[], PreparedModel], grids: Callable[[], GridTable]
) -> dict[Need, Callable[[], Any]]:
    """Return the functions that compute each need without a pass over the images. The model must be equalized."""
    return {
        "trials": lambda: found.trials,
        "information": lambda: found.candidates,
        "local_errors": lambda: found.local_errors,
        "grids": grids,
        "weights": lambda: weights_of(prepared()),
    }


def weights_of(prepared: PreparedModel) -> dict[str, npt.NDArray[np.float32]]:
    """Return the float weights of a network by layer name."""
    layers = [layer for layer in prepared.network.layers if layer.weight is not None]
    return {layer.name: prepared.graph.constant(layer.weight) for layer in layers if layer.weight is not None}


def _activations(prepared: PreparedModel, images: Dataset) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """Yield one batch at a time: the tensor of each activation group."""
    graph = prepared.graph
    names = [group.name for group in prepared.network.groups]
    inner = [name for name in names if name != graph.input]
    session = open_session(expose(graph.model, inner))
    for batch, outputs in run_batches(session, graph, inner, images, batch_size(graph, inner)):
        values = {graph.input: batch, **dict(zip(inner, outputs, strict=True))}
        yield {name: values[name] for name in names}


def _labels(prepared: PreparedModel, images: Dataset) -> npt.NDArray[np.int64]:
    if images.labels is not None:
        return images.labels
    graph = prepared.graph
    logits = logits_of(open_session(graph.model), graph, images, batch_size(graph))
    return np.asarray(logits.argmax(axis=1), dtype=np.int64)
