"""`analyze`: measure how sensitive every layer is at every bit-width."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from infoq_onnx.analyses import (
    Measurement,
    created,
    current,
    forget,
    is_current,
    make_current,
    measurement_of,
    read_analysis,
    require_no_folder,
)
from infoq_onnx.data.dataset import Dataset
from infoq_onnx.data.encoders import get_encoder
from infoq_onnx.errors import AnalysisError, DataError, OutputError, SettingsError, about, setting
from infoq_onnx.execute.cluster import connected
from infoq_onnx.execute.resources import Resources
from infoq_onnx.files import clear_leftovers, write_text
from infoq_onnx.graph.session import Runtime, processors, provider_called, using
from infoq_onnx.pipeline.extending import Load, extensible
from infoq_onnx.pipeline.looking import Seen, encode, fingerprint_of, look, versions
from infoq_onnx.pipeline.scoring import refresh_scores
from infoq_onnx.pipeline.trying import Tried, first_journal, run_trials
from infoq_onnx.preparation import (
    SELF,
    PreparedModel,
    Recipe,
    load_samples,
    memory_bytes,
    prepare,
    report_samples,
)
from infoq_onnx.quantize.codes import CodeTable, Keeper, load_codes, save_codes
from infoq_onnx.quantize.ranges import get_range
from infoq_onnx.quantize.table import GridTable, save_table
from infoq_onnx.reporter import Reporter, Silent
from infoq_onnx.schema import (
    ANALYSIS_VERSION,
    BASELINE_BITS,
    BITS,
    EFFORTS,
    OBSERVING,
    AddedSamples,
    Analysis,
    MeasurementSettings,
    ModelRef,
    Preprocessing,
    require_types,
    to_json,
    typed,
)
from infoq_onnx.sensitivity.blocks import rounding_positions
from infoq_onnx.sensitivity.criteria import get_criteria
from infoq_onnx.sensitivity.journal import locked
from infoq_onnx.sensitivity.sweep import trial_count, tried_bits
from infoq_onnx.sensitivity.trials import Problem
from infoq_onnx.simulate.equalization.equalize import Factors, equalized, find_factors
from infoq_onnx.simulate.quantizers.calibrate import calibrate
from infoq_onnx.simulate.rounding import get_rounding
from infoq_onnx.simulate.rounding.layerwise import unrounded
from infoq_onnx.simulate.running.repeatability import require_repeatable
from infoq_onnx.simulate.running.spill import Spill

MIN_SAMPLES = 16
"""Minimum number of samples. With fewer, neighbours and ranges are meaningless."""
MAX_PROJECTIONS = 10_000
"""Maximum number of projections. An estimate gains nothing from more, and they would exceed the memory."""


@typed
def analyze(
    model: Path | str,
    calib: Path | str,
    settings: MeasurementSettings | None = None,
    *,
    classes: Path | str | None = None,
    preprocessing: str | Recipe | Preprocessing | None = None,
    workers: int | Literal["auto"] | None = None,
    memory: str | int | None = None,
    ray: str | None = None,
    output: Path | str | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
    **changes: Any,
) -> Path:
    """Measure how sensitive every layer is at every bit-width.

    Parameters
    ----------
    model : path of the float ONNX classifier
    calib : class folders, a flat folder, a list file, .npy or .npz
    settings : the settings; None: the defaults
    classes : file with the class names in label order
    preprocessing : name of a preset, a `Preprocessing`, or a function that returns one for the model's input shape;
        None: use arrays unchanged and reject images
    workers : number of processes that run trials; None: only this process, or with `ray` one trial per processor;
        "auto": one per processor if the work is large enough. The number does not change the result. With several
        processes and without `ray`, a script needs the guard `if __name__ == "__main__":`
    memory : approximate memory limit of all processes together in bytes, such as "2GiB"; large sets of images are read
        again when needed, large activations go to a file, and fewer processes run trials; None: no limit. The limit
        does not change the result
    ray : Ray cluster that runs the trials; "local" starts a cluster on this machine; "auto", "host:port" or
        "ray://host:port" uses a running cluster, and `workers` limits the number of concurrent trials. If the process
        is already connected to a cluster, that cluster is used
    output : folder for the analysis; None: `<model>.infoq` in the working folder
    force : remove the contents of the folder first
    reporter : receives progress
    changes : fields of `MeasurementSettings` that replace those of `settings`, such as `samples=200`; `samples=None`
        takes all images

    Returns
    -------
    Path
        The analysis folder. Work that the folder already holds is not repeated: an unfinished analysis is resumed, and
        further bit-widths, activations, observers or images are added to a finished one.

    Raises
    ------
    InfoQError
        See `infoq_onnx.errors`.
    """
    reporter = reporter or Silent()
    resources = Resources(None if workers == "auto" else 1 if workers is None else workers, memory_bytes(memory))
    given = settings_of(settings, changes)
    prepared, dataset, chosen = set_up(model, calib, classes, preprocessing, given, reporter, resources.share)
    folder = Path(output) if output is not None else Path(f"{prepared.path.stem}.infoq")
    with contextlib.ExitStack() as stack:
        if ray is not None:
            cluster = stack.enter_context(connected(ray, None if workers == "auto" else workers, processors()))
            resources = dataclasses.replace(resources, cluster=cluster)
        stack.enter_context(created(folder))
        stack.enter_context(locked(folder))
        stack.enter_context(using(Runtime(chosen.provider)))
        if force:
            reporter.warn(f"{folder}: what it held is removed ({setting('force')})")
            forget(folder)
        load = functools.partial(_load, prepared, calib, classes, preprocessing, chosen.seed, resources.share)
        seen, fingerprint, datasets = _identify(folder, prepared, dataset, chosen, load, reporter)
        measurement, chosen = _begin(folder, fingerprint, seen.prepared, datasets[0], chosen, reporter)
        seen, grids = find_grids(encode(seen, datasets[0], chosen), datasets[0], chosen, reporter)
        spill = None if resources.share is None else Spill(measurement.path, resources.share)
        rounded = _rounded_weights(measurement, fingerprint, seen.prepared, datasets[0], chosen, spill, reporter)
        problem = Problem(
            seen.prepared.graph,
            seen.prepared.network,
            grids,
            datasets[0],
            seen.labels,
            seen.targets,
            seen.encoded,
            chosen,
            rounded,
        )
        looked = functools.partial(_look_again, prepared, chosen)
        where = (measurement, fingerprint, resources, spill, reporter)
        tried = run_trials(problem, seen, datasets, looked, *where)
        analysis = _finish(measurement, fingerprint, seen, datasets, chosen, grids, tried)
        refresh_scores(measurement, analysis, seen.prepared, grids, reporter)
        make_current(folder, measurement)
    return folder


def settings_of(settings: MeasurementSettings | None, changes: dict[str, Any]) -> MeasurementSettings:
    """Apply changes to settings. The bit-widths of the result always include 8, and the observers are determined.

    Parameters
    ----------
    settings : the settings; None: the defaults
    changes : field → new value

    Returns
    -------
    MeasurementSettings

    Raises
    ------
    TypeError
        A field does not exist.
    """
    found = dataclasses.replace(settings or MeasurementSettings(), **changes)
    require_types(found)
    bits = tuple(sorted({*found.bits, BASELINE_BITS}))
    return dataclasses.replace(found, bits=bits, provider=found.provider.lower(), observers=found.observing)


def set_up(
    model: Path | str,
    calib: Path | str,
    classes: Path | str | None,
    preprocessing: str | Recipe | Preprocessing | None,
    settings: MeasurementSettings,
    reporter: Reporter,
    cache_bytes: int | None = None,
) -> tuple[PreparedModel, Dataset, MeasurementSettings]:
    """Check the settings, and load the model and the samples. The parameters are those of `analyze`.

    `cache_bytes` is the memory for samples in bytes; None: the default.

    Returns
    -------
    prepared : PreparedModel
    dataset : Dataset
    settings : MeasurementSettings
        The settings, with the actual number of samples.

    Raises
    ------
    InfoQError
        A setting, the model or the samples cannot be used.
    """
    _check_settings(settings)
    # report a criterion of another package that cannot be loaded before any work
    get_criteria()
    prepared = prepare(model, settings.logits, reporter)
    dataset = load_samples(prepared, calib, classes, preprocessing, settings.samples, settings.seed, cache_bytes)
    if len(dataset) < MIN_SAMPLES:
        raise DataError(f"{calib} has {len(dataset)} usable samples: give at least {MIN_SAMPLES}")
    with about(str(prepared.path)):
        require_repeatable(prepared.graph, prepared.path, dataset)
    report_samples(dataset, preprocessing, reporter)
    return prepared, dataset, dataclasses.replace(settings, samples=len(dataset))


def _load(
    prepared: PreparedModel,
    calib: Path | str,
    classes: Path | str | None,
    preprocessing: str | Recipe | Preprocessing | None,
    seed: int,
    cache_bytes: int | None,
    samples: int | None,
    without: npt.NDArray[np.int64] | None = None,
) -> Dataset:
    return load_samples(prepared, calib, classes, preprocessing, samples, seed, cache_bytes, without)


def _identify(
    folder: Path,
    prepared: PreparedModel,
    dataset: Dataset,
    settings: MeasurementSettings,
    load: Load,
    reporter: Reporter,
) -> tuple[Seen, str, list[Dataset]]:
    """Find the measurement to run: one of exactly these images, or a finished one to which some of them are added.

    Returns
    -------
    seen : Seen
        The model and the first block of images.
    fingerprint : str
    blocks : list of Dataset
        The images of the measurement, then the images of each extension.
    """
    whole = look(prepared, dataset, settings, reporter)
    own = fingerprint_of(whole, settings)
    if measurement_of(folder, own).path.is_dir():
        return whole, own, [dataset]
    for measurement, blocks in extensible(folder, prepared, dataset, settings, load, MIN_SAMPLES):
        seen = look(prepared, blocks[0], settings, Silent())
        fingerprint = fingerprint_of(seen, settings)
        if measurement_of(folder, fingerprint).path != measurement.path:
            continue
        had, added = len(blocks[0]), sum(map(len, blocks[1:]))
        if missing := len(dataset) - had - added:
            reporter.note(f"{missing} images more than {folder} has are too few to add: give {MIN_SAMPLES} or more")
        if added:
            reporter.note(
                f"{folder} holds an analysis of {had} images: it is extended by {added} others; ranges and rounding "
                f"stay those of the first ({setting('force')} measures all anew)"
            )
        return seen, fingerprint, blocks
    return whole, own, [dataset]


def _look_again(prepared: PreparedModel, settings: MeasurementSettings, dataset: Dataset, grouped: bool) -> Seen:
    """Run the float network over the images of an extension."""
    found = look(prepared, dataset, dataclasses.replace(settings, equalize=False), Silent(), grouped=grouped)
    return encode(found, dataset, settings)


def _begin(
    folder: Path,
    fingerprint: str,
    prepared: PreparedModel,
    dataset: Dataset,
    settings: MeasurementSettings,
    reporter: Reporter,
) -> tuple[Measurement, MeasurementSettings]:
    """Open the measurement. The returned settings also include everything already measured."""
    measurement = measurement_of(folder, fingerprint)
    try:
        measurement.path.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write in {folder}: {error.strerror}; choose another folder with {setting('output')}"
        ) from error
    kept = (measurement.analysis, measurement.grids, measurement.journal, measurement.codes)
    files = (*kept, measurement.unfinished_codes, measurement.checksums)
    for path in files:
        require_no_folder(path)
    clear_leftovers(measurement.path, [path.name for path in files])
    clear_leftovers(measurement.scores, [f"{name}.json" for name in get_criteria()])
    with contextlib.suppress(AnalysisError):
        known = read_analysis(measurement.path).settings
        if EFFORTS.index(known.effort) > EFFORTS.index(settings.effort):
            reporter.note(f"{folder} holds an analysis with {setting('effort')} {known.effort}: it keeps that")
            settings = dataclasses.replace(settings, effort=known.effort)
        if OBSERVING.index(known.observing) > OBSERVING.index(settings.observing):
            settings = dataclasses.replace(settings, observers=known.observing)
        settings = dataclasses.replace(settings, bits=tuple(sorted({*settings.bits, *known.bits})))
    journal = first_journal(measurement, fingerprint, dataset, settings)
    units = {trial.unit for trial in journal.trials.values()}
    settings = dataclasses.replace(
        settings,
        bits=tuple(sorted({*settings.bits, *(trial.bits for trial in journal.trials.values())})),
        weight_only=settings.weight_only and not any(unit.kind == "activation" for unit in units),
    )
    if journal.trials:
        total = trial_count(prepared.network, settings)
        reporter.note(f"going on with {folder}: {len(journal.trials)} of {total} trials are done")
    elif not is_current(folder, measurement):
        with contextlib.suppress(AnalysisError):
            kept_beside = current(folder).path.name
            reporter.note(
                f"{folder} holds an analysis of another model, other images or settings: it is kept, as {kept_beside}, "
                "and this one takes its place when it is done"
            )
    return measurement, settings


def find_grids(
    seen: Seen, dataset: Dataset, settings: MeasurementSettings, reporter: Reporter
) -> tuple[Seen, GridTable]:
    """Equalize the channels if requested, then calibrate all grids."""
    done = 0

    def advance(images: int) -> None:
        nonlocal done
        done += images
        reporter.progress("ranges", f"{len(dataset)} images, twice", done, 2 * len(dataset))

    prepared = seen.prepared
    factors: Factors = {}
    if settings.equalize:
        factors = find_factors(prepared.graph, prepared.network, dataset, lambda _: None)
        prepared = dataclasses.replace(prepared, graph=equalized(prepared.graph, prepared.network, factors))
    network = (prepared.graph, prepared.network, prepared.placement)
    table = calibrate(*network, dataset, settings.bits, advance, get_range(settings.act_range))
    return dataclasses.replace(seen, prepared=prepared), dataclasses.replace(table, factors=factors)


def _rounded_weights(
    measurement: Measurement,
    fingerprint: str,
    prepared: PreparedModel,
    dataset: Dataset,
    settings: MeasurementSettings,
    spill: Spill | None,
    reporter: Reporter,
) -> CodeTable:
    """Round each layer independently of the others. Reuse the codes of earlier runs of this measurement."""
    method = get_rounding(settings.trial_rounding)
    if method.layerwise is None:
        return {}
    part = rounding_positions(dataset.labels, len(dataset), settings.effort, settings.seed)
    if len(part) < len(dataset):
        dataset = dataset.part(part)
        fingerprint = f"{fingerprint} {dataset.sha256}"
    path = measurement.unfinished_codes
    kept: CodeTable = {}
    for file in (measurement.codes, path):
        with contextlib.suppress(AnalysisError):
            kept = load_codes(file, prepared.network, fingerprint)
    graph, network = prepared.graph, prepared.network
    bits = [*tried_bits(settings), BASELINE_BITS]
    if kept and (left := unrounded(graph, network, bits, kept)):
        layers = len(left.keys() | kept.keys())
        reporter.note(f"going on with {measurement.path.parent}: {layers - len(left)} of {layers} layers are rounded")
    table = method.layerwise(
        graph,
        network,
        dataset,
        bits,
        lambda layer, done, total: reporter.progress("rounding", layer, done, total),
        spill,
        kept,
        Keeper(path, fingerprint),
    )
    save_codes(table, path, fingerprint)
    return table


def _finish(
    measurement: Measurement,
    fingerprint: str,
    seen: Seen,
    datasets: list[Dataset],
    settings: MeasurementSettings,
    grids: GridTable,
    tried: Tried,
) -> Analysis:
    """Write the analysis, the grids and the codes of the measurement."""
    prepared = seen.prepared
    analysis = Analysis(
        schema=ANALYSIS_VERSION,
        fingerprint=fingerprint,
        versions=versions(),
        model=ModelRef(
            path=str(prepared.path.resolve()),
            sha256=prepared.sha256,
            float_top1=tried.float_top1,
            baseline_top1=None if seen.float_top1 is None else tried.result.baseline_top1,
        ),
        calibration=tried.calibration,
        settings=dataclasses.replace(settings, samples=sum(map(len, datasets))),
        network=prepared.network,
        candidates=tried.result.candidates,
        trials=tried.result.trials,
        splits=seen.splits,
        added=tuple(AddedSamples(len(one), len(one) + len(one.skipped), one.sha256) for one in datasets[1:]),
        local_errors=tried.local_errors,
        tried_images=tried.images,
    )
    try:
        # an interrupted replacement must not leave the grids of one run beside the trials of another
        measurement.analysis.unlink(missing_ok=True)
        save_table(grids, measurement.grids)
        if measurement.unfinished_codes.exists():
            os.replace(measurement.unfinished_codes, measurement.codes)
        write_text(measurement.analysis, to_json(analysis))
    except OSError as error:
        raise OutputError(
            f"cannot write in {measurement.path}: {error.strerror}; choose another folder with {setting('output')}"
        ) from error
    measurement.seal()
    return analysis


def _check_settings(settings: MeasurementSettings) -> None:
    if wrong := sorted(set(settings.bits) - set(BITS)):
        raise SettingsError(f"{setting('bits')}: {wrong[0]} is not one of {', '.join(map(str, BITS))}; drop it")
    if settings.bits == (BASELINE_BITS,):
        raise SettingsError(
            f"{setting('bits')} {BASELINE_BITS}: there is nothing to try; give widths below {BASELINE_BITS}, too"
        )
    if settings.samples is not None and settings.samples < MIN_SAMPLES:
        raise SettingsError(f"{setting('samples')} {settings.samples}: give at least {MIN_SAMPLES}")
    if not 2 <= settings.projections <= MAX_PROJECTIONS:
        raise SettingsError(f"{setting('projections')} {settings.projections}: give 2 to {MAX_PROJECTIONS}")
    if not 1 <= settings.neighbours < MIN_SAMPLES:
        raise SettingsError(f"{setting('neighbours')} {settings.neighbours}: give 1 to {MIN_SAMPLES - 1}")
    get_rounding(settings.trial_rounding, "trial_rounding")
    get_range(settings.act_range)
    provider_called(settings.provider)
    if settings.encoder != SELF:
        get_encoder(settings.encoder)
