"""How sensitive is every layer, at every bit-width?"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from infoq_onnx.analyses import CHECKSUMS, CODES, created
from infoq_onnx.data.dataset import Dataset
from infoq_onnx.data.encoders import encoder_file, get_encoder
from infoq_onnx.errors import AnalysisError, DataError, ModelError, OutputError, SettingsError
from infoq_onnx.execute.cluster import connected
from infoq_onnx.execute.resources import Resources
from infoq_onnx.files import clear_leftovers, write_checksums, write_text
from infoq_onnx.graph.external import model_sha256
from infoq_onnx.graph.session import open_session, processors, provider_called, running_on
from infoq_onnx.inputs import (
    SELF,
    PreparedModel,
    Recipe,
    encode_inputs,
    load_samples,
    memory_bytes,
    prepare,
    report_skipped,
    with_splits,
)
from infoq_onnx.progress import Reporter, Silent
from infoq_onnx.quantize.codes import CodeTable, Keeper, load_codes, save_codes
from infoq_onnx.quantize.table import save_table
from infoq_onnx.schema import (
    BASELINE_BITS,
    BITS,
    SCHEMA_VERSION,
    Analysis,
    ModelRef,
    Preprocessing,
    Rounding,
    Split,
    SweepSettings,
    to_json,
)
from infoq_onnx.sensitivity.criteria import get_criteria
from infoq_onnx.sensitivity.journal import locked, open_journal
from infoq_onnx.sensitivity.observers import candidates
from infoq_onnx.sensitivity.sweep import sweep, trial_count
from infoq_onnx.sensitivity.targets import groups, has_classmates
from infoq_onnx.sensitivity.trials import Problem
from infoq_onnx.simulate.alone import round_alone
from infoq_onnx.simulate.batching import batch_size, logits_of
from infoq_onnx.simulate.calibrate import calibrate
from infoq_onnx.simulate.equalize import Factors, equalized, find_factors
from infoq_onnx.simulate.forms import form_of
from infoq_onnx.simulate.repeatability import require_repeatable
from infoq_onnx.simulate.spill import Spill
from infoq_onnx.simulate.split import find_splits

DEFAULT_SAMPLES = 1000
UNFINISHED_CODES = "codes.next.npz"
"""Rounded weights of an analysis that is not finished: those of one that it replaces are still needed."""
MIN_SAMPLES = 16
"""Below this, neighbours and ranges mean nothing."""
MAX_PROJECTIONS = 10_000
"""Far above what an estimate gains by, and what memory still holds."""


def analyze(
    model: Path | str,
    calib: Path | str,
    *,
    classes: Path | str | None = None,
    preprocessing: str | Recipe | Preprocessing | None = None,
    samples: int | None = DEFAULT_SAMPLES,
    seed: int = 0,
    bits: Sequence[int] = BITS,
    encoder: str = "pca",
    projections: int = 128,
    neighbours: int = 3,
    threshold: float = 0.70,
    one_over_b: bool = True,
    debias: bool = False,
    equalize: bool = True,
    trial_rounding: Rounding = "gptq",
    weight_only: bool = False,
    provider: str = "cpu",
    workers: int | Literal["auto"] | None = None,
    memory: str | None = None,
    ray: str | None = None,
    output: Path | str | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Measure how sensitive every layer is at every bit-width.

    Parameters
    ----------
    model : path of the float ONNX classifier
    calib : class folders, a flat folder, a list file, .npy or .npz
    classes : file with the class names in label order
    preprocessing : preset name, a `Preprocessing`, or a function that makes one for the model's input shape; None takes
        arrays as they are and refuses images
    samples : how many images to use; None for all
    seed : decides the choice of images, the directions and the jitter
    bits : bit-widths to try; 8 is the baseline
    encoder : what stands for X: "pca", "self", "dinov2" or an ONNX file
    projections : directions a sliced mutual information is averaged over
    neighbours : k of the estimators
    threshold : correlation above which a candidate becomes an observer
    one_over_b, debias : see `sensitivity.criteria.infoq`
    equalize : see `simulate.equalize` and `simulate.split`
    trial_rounding : how the weights of a trial are rounded: "nearest", or "gptq", every layer on its own
    weight_only : try weights only; `allocate` then leaves activations at 8 bits
    provider : what onnxruntime runs the networks on, such as "cuda"
    workers : processes that run trials: by default this one, and with `ray` as many as there are processors; "auto"
        starts one a processor where the work is worth it. The result is the same for any number. With more than one,
        and without `ray`, a script has to keep them from running it: `if __name__ == "__main__":`
    memory : bytes such as "2GiB" that all processes together may take, about: images and activations that would take
        much of it are read again or go to a file, and fewer processes run trials. The result is the same for any
    ray : where a Ray cluster runs the trials: "local" starts one on this machine for the purpose; "auto", "host:port"
        or "ray://host:port" is one that runs, and `workers` then bounds the trials at a time. A process that is
        connected to one already uses that
    output : folder for the analysis; by default `<model>.infoq` in the working folder
    reporter : receives progress

    Returns
    -------
    Path
        The analysis folder. An unfinished analysis with the same settings is gone on with.

    Raises
    ------
    InfoQError
        See `infoq_onnx.errors`.
    """
    reporter = reporter or Silent()
    settings = SweepSettings(
        samples=0,
        seed=seed,
        projections=projections,
        neighbours=neighbours,
        bits=tuple(sorted({*bits, BASELINE_BITS})),
        encoder=encoder,
        threshold=threshold,
        one_over_b=one_over_b,
        debias=debias,
        equalize=equalize,
        trial_rounding=trial_rounding,
        weight_only=weight_only,
        provider=provider.lower(),
    )
    resources = Resources(None if workers == "auto" else workers or 1, memory_bytes(memory))
    prepared, dataset, settings = set_up(
        model, calib, classes, preprocessing, samples, settings, reporter, resources.share
    )
    folder = Path(output) if output is not None else Path(f"{prepared.path.stem}.infoq")
    with contextlib.ExitStack() as stack:
        if ray is not None:
            cluster = stack.enter_context(connected(ray, None if workers == "auto" else workers, processors()))
            resources = dataclasses.replace(resources, cluster=cluster)
        stack.enter_context(created(folder))
        stack.enter_context(locked(folder))
        stack.enter_context(running_on(settings.provider))
        clear_leftovers(folder, ("analysis.json", "ranges.npz", "journal.jsonl", CODES, UNFINISHED_CODES, CHECKSUMS))
        _analyze_into(folder, prepared, dataset, settings, resources, reporter)
    return folder


def set_up(
    model: Path | str,
    calib: Path | str,
    classes: Path | str | None,
    preprocessing: str | Recipe | Preprocessing | None,
    samples: int | None,
    settings: SweepSettings,
    reporter: Reporter,
    cache_bytes: int | None = None,
) -> tuple[PreparedModel, Dataset, SweepSettings]:
    """Check the settings, load the model and the samples; the settings that come back hold the number of these."""
    _check_settings(settings, samples)
    prepared = prepare(model)
    dataset = load_samples(prepared, calib, classes, preprocessing, samples, settings.seed, cache_bytes)
    if len(dataset) < MIN_SAMPLES:
        raise DataError(f"{calib} has {len(dataset)} usable samples: give at least {MIN_SAMPLES}")
    try:
        require_repeatable(prepared.graph, prepared.path, dataset)
    except ModelError as error:
        raise ModelError(f"{prepared.path}: {error}") from error
    report_skipped(dataset, reporter)
    return prepared, dataset, dataclasses.replace(settings, samples=len(dataset))


def _analyze_into(
    folder: Path,
    prepared: PreparedModel,
    dataset: Dataset,
    settings: SweepSettings,
    resources: Resources,
    reporter: Reporter,
) -> None:
    logits = logits_of(open_session(prepared.graph.model), prepared.graph, dataset, batch_size(prepared.graph))
    _check_finite(logits, prepared.path)
    encoded = encode_inputs(settings.encoder, prepared, dataset)
    splits: tuple[Split, ...] = ()
    if settings.equalize:
        splits = find_splits(prepared.graph, prepared.network, prepared.placement, dataset, lambda _: None)
        prepared = with_splits(prepared, splits)
    graph, network = prepared.graph, prepared.network
    predicted = logits.argmax(axis=1).astype(np.int64)
    float_top1 = None if dataset.labels is None else float(np.mean(predicted == dataset.labels))
    _report_accuracy(float_top1, network.classes, len(dataset), reporter)
    for one in splits:
        reporter.note(f"channel {one.channel} of {one.tensor} dwarfs the others: it is read in {one.parts} parts")
    labels = predicted if dataset.labels is None else dataset.labels
    calibration = dataset.ref()
    targets = labels
    if not has_classmates(labels, settings.neighbours):
        targets = groups(logits)
        calibration = dataclasses.replace(calibration, targets="groups")
        reporter.note(
            f"too few images a class to measure information on classes: {len(np.unique(targets))} groups of images "
            "that the float model finds alike stand in for them"
        )
    calibration = dataclasses.replace(
        calibration,
        path=str(Path(calibration.path).resolve()),
        classes_path=None if calibration.classes_path is None else str(Path(calibration.classes_path).resolve()),
    )
    encoder = encoder_file(settings.encoder)
    versions = {name: importlib.metadata.version(name) for name in ("infoq-onnx", "onnxruntime", "numpy")}
    fingerprint = hashlib.sha256(
        "".join(
            [
                prepared.sha256,
                calibration.sha256,
                to_json(calibration.preprocessing),
                to_json(settings),
                "" if encoder is None else model_sha256(encoder),
                str(versions),
                # what is measured where follows from the model, but by rules that change with the code
                to_json(network),
                str(candidates(graph, network)),
            ]
        ).encode()
    ).hexdigest()
    journal = open_journal(folder / "journal.jsonl", fingerprint)
    if journal.trials:
        total = trial_count(network, settings)
        reporter.note(f"going on with {folder}: {len(journal.trials)} of {total} trials are done")
    elif (folder / "analysis.json").exists():
        reporter.warn(f"{folder} holds an analysis of another model, other images or settings: it will be replaced")

    done = 0

    def advance(images: int) -> None:
        nonlocal done
        done += images
        reporter.progress("ranges", f"{len(dataset)} images, twice", done, 2 * len(dataset))

    factors: Factors = {}
    if settings.equalize:
        factors = find_factors(graph, network, dataset, lambda _: None)
        graph = equalized(graph, network, factors)
        prepared = dataclasses.replace(prepared, graph=graph)
    table = calibrate(graph, network, prepared.placement, dataset, settings.bits, advance)
    table = dataclasses.replace(table, factors=factors)
    rounded: CodeTable = {}
    files = ["analysis.json", "ranges.npz"]
    if settings.trial_rounding == "gptq":
        spill = None if resources.share is None else Spill(folder, resources.share)
        rounded = _rounded_weights(folder, fingerprint, prepared, dataset, settings.bits, spill, reporter)
        files.append(CODES)
    problem = Problem(graph, network, table, dataset, labels, targets, encoded, settings, rounded)
    result = sweep(problem, journal, functools.partial(reporter.progress, "trials"), resources)
    analysis = Analysis(
        schema=SCHEMA_VERSION,
        versions=versions,
        model=ModelRef(
            path=str(prepared.path.resolve()),
            sha256=prepared.sha256,
            float_top1=float_top1,
            baseline_top1=None if dataset.labels is None else result.baseline_top1,
        ),
        calibration=calibration,
        settings=settings,
        network=network,
        observers=result.observers,
        trials=result.trials,
        scores={
            name: tuple(criterion(result.trials, result.observers, settings))
            for name, criterion in sorted(get_criteria().items())
        },
        splits=splits,
    )
    for name, found in analysis.scores.items():
        if not found:
            reporter.warn(
                f"{name} scores nothing, as its observers hold no information: for --criterion {name} give more images "
                "or other labels"
            )
    try:
        # an interrupted replacement must not leave the ranges of one analysis beside the scores of another
        (folder / "analysis.json").unlink(missing_ok=True)
        save_table(table, folder / "ranges.npz")
        if settings.trial_rounding == "gptq":
            os.replace(folder / UNFINISHED_CODES, folder / CODES)
        else:
            (folder / CODES).unlink(missing_ok=True)
            (folder / UNFINISHED_CODES).unlink(missing_ok=True)
        write_text(folder / "analysis.json", to_json(analysis))
    except OSError as error:
        raise OutputError(f"cannot write in {folder}: {error.strerror}; choose another folder with -o") from error
    write_checksums(folder, files, CHECKSUMS)


def _rounded_weights(
    folder: Path,
    fingerprint: str,
    prepared: PreparedModel,
    dataset: Dataset,
    bits: Sequence[int],
    spill: Spill | None,
    reporter: Reporter,
) -> CodeTable:
    """Round every layer on its own, but for what an earlier run of this analysis has rounded."""
    path = folder / UNFINISHED_CODES
    kept: CodeTable = {}
    for name in (CODES, UNFINISHED_CODES):
        with contextlib.suppress(AnalysisError):
            kept = load_codes(folder / name, fingerprint)
    layers = {layer.name for layer in prepared.network.layers if form_of(prepared.graph, layer) is not None}
    if layers <= kept.keys():
        save_codes(kept, path, fingerprint)
        return kept
    if kept:
        reporter.note(f"going on with {folder}: {len(kept)} of {len(layers)} layers are rounded")
    table = round_alone(
        prepared.graph,
        prepared.network,
        dataset,
        bits,
        lambda layer, done, total: reporter.progress("rounding", layer, done, total),
        spill,
        kept,
        Keeper(path, fingerprint),
    )
    save_codes(table, path, fingerprint)
    return table


def _check_settings(settings: SweepSettings, samples: int | None) -> None:
    if wrong := sorted(set(settings.bits) - set(BITS)):
        raise SettingsError(f"--bits: {wrong[0]} is not one of {', '.join(map(str, BITS))}")
    if settings.bits == (BASELINE_BITS,):
        raise SettingsError(f"--bits {BASELINE_BITS}: there is nothing to try; give widths below {BASELINE_BITS}, too")
    if samples is not None and samples < MIN_SAMPLES:
        raise SettingsError(f"--samples {samples}: give at least {MIN_SAMPLES}")
    if not 2 <= settings.projections <= MAX_PROJECTIONS:
        raise SettingsError(f"--projections {settings.projections}: give 2 to {MAX_PROJECTIONS}")
    if not 1 <= settings.neighbours < MIN_SAMPLES:
        raise SettingsError(f"--neighbours {settings.neighbours}: give 1 to {MIN_SAMPLES - 1}")
    if not -1 <= settings.threshold <= 1:
        raise SettingsError(f"--threshold {settings.threshold}: a correlation lies between -1 and 1")
    if settings.trial_rounding not in get_args(Rounding):
        raise SettingsError(f"--trial-rounding {settings.trial_rounding}: choose {' or '.join(get_args(Rounding))}")
    provider_called(settings.provider)
    if settings.encoder != SELF:
        get_encoder(settings.encoder)


def _check_finite(logits: npt.NDArray[np.float32], path: Path) -> None:
    if not np.isfinite(logits).all():
        raise ModelError(f"{path} computes NaN or infinite logits on the calibration data; check the preprocessing")


def _report_accuracy(top1: float | None, classes: int, images: int, reporter: Reporter) -> None:
    if top1 is None:
        reporter.note(f"{images} images without labels: the float model's own predictions stand in for them")
        return
    reporter.note(f"float model: {100 * top1:.2f} % top-1 on {images} calibration images")
    chance = 1 / classes
    if top1 <= max(chance + 4 * np.sqrt(chance * (1 - chance) / images), min(5 * chance, 0.05)):
        reporter.warn(
            f"{100 * top1:.2f} % is near chance ({100 * chance:.2f} %): wrong preprocessing or wrong label order?"
        )
