"""The verbs: inspect, analyze, allocate, compress, evaluate. Each reads like the README."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from infoq_onnx.allocation.bounds import option, parse_bound
from infoq_onnx.allocation.costs import Metric, costs, uniform
from infoq_onnx.allocation.decide import budget_label, decide, decide_uniform
from infoq_onnx.analyses import CHECKSUMS, created, find_analysis, read_analysis
from infoq_onnx.data import preprocess
from infoq_onnx.data.dataset import Dataset, load_dataset
from infoq_onnx.data.encoders import get_encoder
from infoq_onnx.demo import demo_calibration_path, demo_model_path, demo_test_path
from infoq_onnx.emit.qdq import qdq_model
from infoq_onnx.emit.storage import STORAGES
from infoq_onnx.emit.verify import verify
from infoq_onnx.errors import DataError, ModelError, SettingsError
from infoq_onnx.evaluation import PREPROCESSING_KEY, evaluate_model, open_classifier
from infoq_onnx.files import replacing, sha256_of, write_checksums, write_text
from infoq_onnx.graph.session import open_session
from infoq_onnx.inputs import (
    SELF,
    PreparedModel,
    Recipe,
    calibration_again,
    encode_inputs,
    load_samples,
    prepare,
    prepare_again,
    preprocessing_for,
    report_skipped,
)
from infoq_onnx.progress import Reporter, Silent
from infoq_onnx.quantize.table import GridTable, load_table, save_table
from infoq_onnx.schema import (
    BASELINE_BITS,
    BITS,
    SCHEMA_VERSION,
    Allocation,
    Analysis,
    Compressed,
    DemoRow,
    Evaluation,
    ModelRef,
    Network,
    Preprocessing,
    SweepSettings,
    Verification,
    from_json,
    to_json,
)
from infoq_onnx.sensitivity.criteria import get_criteria
from infoq_onnx.sensitivity.journal import locked, open_journal
from infoq_onnx.sensitivity.observers import candidates
from infoq_onnx.sensitivity.sweep import Problem, sweep, trial_count
from infoq_onnx.sensitivity.targets import groups, has_classmates
from infoq_onnx.simulate.batching import batch_size, logits_of
from infoq_onnx.simulate.calibrate import calibrate
from infoq_onnx.simulate.reconstruct import reconstruct
from infoq_onnx.simulate.simulation import LayerCodes, layer_codes, simulation

DEFAULT_SAMPLES = 1000
VERIFICATION_SAMPLES = 128
ROUNDINGS = ("nearest", "gptq")
MIN_SAMPLES = 16
"""Below this, neighbours and ranges mean nothing."""
MAX_PROJECTIONS = 10_000
"""Far above what an estimate gains by, and what memory still holds."""


def inspect(model: Path | str) -> Network:
    """Say what there is to quantize in a model: layers, groups, parameters, MACs, and what was skipped and why."""
    return prepare(model).network


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
    )
    _check_settings(settings, bits, samples)
    prepared = prepare(model)
    dataset = load_samples(prepared, calib, classes, preprocessing, samples, seed)
    if len(dataset) < MIN_SAMPLES:
        raise DataError(f"{calib} has {len(dataset)} usable samples: give at least {MIN_SAMPLES}")
    report_skipped(dataset, reporter)
    settings = dataclasses.replace(settings, samples=len(dataset))
    folder = Path(output) if output is not None else Path(f"{prepared.path.stem}.infoq")
    with created(folder), locked(folder):
        _analyze_into(folder, prepared, dataset, settings, reporter)
    return folder


def _analyze_into(
    folder: Path, prepared: PreparedModel, dataset: Dataset, settings: SweepSettings, reporter: Reporter
) -> None:
    graph, network = prepared.graph, prepared.network
    logits = logits_of(open_session(graph.model), graph, dataset, batch_size(graph))
    _check_finite(logits, prepared.path)
    encoded = encode_inputs(settings.encoder, prepared, dataset)
    predicted = logits.argmax(axis=1).astype(np.int64)
    float_top1 = None if dataset.labels is None else float(np.mean(predicted == dataset.labels))
    _report_accuracy(float_top1, network.classes, len(dataset), reporter)
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
    versions = {name: importlib.metadata.version(name) for name in ("infoq-onnx", "onnxruntime", "numpy")}
    fingerprint = hashlib.sha256(
        "".join(
            [
                prepared.sha256,
                calibration.sha256,
                to_json(calibration.preprocessing),
                to_json(settings),
                str(versions),
                # what is measured where follows from the model, but by rules that change with the code
                to_json(network),
                str(candidates(graph, network)),
            ]
        ).encode()
    ).hexdigest()
    journal = open_journal(folder / "journal.jsonl", fingerprint)
    if journal.trials:
        total = trial_count(network, settings.bits)
        reporter.note(f"going on with {folder}: {len(journal.trials)} of {total} trials are done")
    elif (folder / "analysis.json").exists():
        reporter.warn(f"{folder} holds an analysis of another model, other images or settings: it will be replaced")

    done = 0

    def advance(images: int) -> None:
        nonlocal done
        done += images
        reporter.progress("ranges", f"{len(dataset)} images, twice", done, 2 * len(dataset))

    table = calibrate(graph, network, prepared.placement, dataset, settings.bits, advance)
    problem = Problem(graph, network, table, dataset, labels, targets, encoded, settings)
    result = sweep(problem, journal, lambda unit, n, total: reporter.progress("trials", unit, n, total))
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
    )
    for name, found in analysis.scores.items():
        if not found:
            reporter.warn(
                f"{name} scores nothing, as its observers hold no information: give more images or other labels, or "
                "allocate with another --criterion"
            )
    # an interrupted replacement must not leave the ranges of one analysis beside the scores of another
    (folder / "analysis.json").unlink(missing_ok=True)
    save_table(table, folder / "ranges.npz")
    write_text(folder / "analysis.json", to_json(analysis))
    write_checksums(folder, ("analysis.json", "ranges.npz"), CHECKSUMS)


def allocate(
    analysis: Path | str | None = None,
    *,
    bounds: Mapping[Metric, str] | None = None,
    uniform_bits: tuple[int, int] | None = None,
    weight_only: bool = False,
    alpha: float = 1.0,
    criterion: str = "infoq",
    bits: Sequence[int] | None = None,
    pins: Sequence[str] = (),
    rounding: str = "nearest",
    storage: str = "packed",
    model: Path | str | None = None,
    calib: Path | str | None = None,
    output: Path | str | None = None,
    reporter: Reporter | None = None,
) -> Compressed:
    """Give every layer its bits within a budget, and write the model.

    Parameters
    ----------
    analysis : the analysis folder; None takes the newest in the working folder
    bounds : metric → limit as the user writes it, e.g. {"bitops": "23.04G"} or {"compression": "10.66"}
    uniform_bits : (weights, activations): the same bits everywhere, instead of solving anything
    weight_only : leave activations at 8 bits
    alpha : factor on activation scores
    criterion : whose scores to use
    bits : widths to choose among; None for all that were analysed
    pins : e.g. "first=8/8", "conv1=4", "last=/8"
    rounding : "nearest", or "gptq": layer by layer, to mend what the layers before have lost
    storage : "packed": every weight in exactly its bits; "int8": one byte a weight
    model, calib : where they are now, when they moved since the analysis
    output : the ONNX to write; the allocation goes beside it as .json
    reporter : receives progress

    Returns
    -------
    Compressed

    Raises
    ------
    InfeasibleBudgetError
        The message says what is reachable.
    VerificationError
        The written model did not compute what was simulated; it is removed.
    InfoQError
        See `infoq_onnx.errors`.
    """
    if storage not in STORAGES:
        raise SettingsError(f"--storage {storage}: choose {' or '.join(STORAGES)}")
    if rounding not in ROUNDINGS:
        raise SettingsError(f"--rounding {rounding}: choose {' or '.join(ROUNDINGS)}")
    folder = Path(analysis) if analysis is not None else find_analysis()
    found = read_analysis(folder)
    network = found.network
    bounds = dict(bounds or {})
    if uniform_bits is None and not bounds:
        raise SettingsError(
            "give one or more bounds (such as --bitops 23.04G or --compression 10.66), or --uniform W/A"
        )
    choosing = [*map(option, bounds), *(["--pin"] if pins else []), *(["--bits"] if bits is not None else [])]
    if uniform_bits is not None and choosing:
        raise SettingsError(f"--uniform decides all bits: drop it, or {' and '.join(choosing)}")
    parsed = tuple(parse_bound(metric, text, network) for metric, text in bounds.items())
    label = budget_label(parsed, uniform_bits, weight_only)
    path = Path(output) if output is not None else Path(f"{Path(model or found.model.path).stem}.{label}.onnx")
    if path.suffix != ".onnx":
        raise SettingsError(f"-o {path}: the model's name must end in .onnx")
    allocation = (
        decide_uniform(found, uniform_bits, weight_only)
        if uniform_bits is not None
        else decide(found, parsed, pins, weight_only, alpha, criterion, bits)
    )
    allocation = dataclasses.replace(allocation, analysis_sha256=sha256_of(folder / "analysis.json"), rounding=rounding)
    prepared = prepare_again(found, model)
    _check_output(path, prepared)
    table = load_table(folder / "ranges.npz")
    if calib is not None:
        # where the user says they are now, there may be others
        calibration_again(found, prepared, calib)
    bits_chosen = (allocation.weight_bits, allocation.activation_bits)
    if rounding == "gptq":
        codes = reconstruct(
            prepared.graph,
            network,
            prepared.placement,
            table,
            *bits_chosen,
            calibration_again(found, prepared, calib),
            lambda layer, done, total: (reporter or Silent()).progress("rounding", layer, done, total),
        )
    else:
        codes = layer_codes(prepared.graph, network, table, *bits_chosen)
    dataset = calibration_again(found, prepared, calib, VERIFICATION_SAMPLES)
    verification = emit(prepared, table, allocation, codes, dataset, path, label, storage)
    return Compressed(
        allocation=allocation,
        network=network,
        before=costs(network, *uniform(network, 32, 32)),
        model_path=path,
        allocation_path=path.with_suffix(".json"),
        file_bytes=path.stat().st_size,
        float_file_bytes=prepared.path.stat().st_size,
        verification=verification,
    )


def emit(
    prepared: PreparedModel,
    table: GridTable,
    allocation: Allocation,
    codes: Mapping[str, LayerCodes],
    dataset: Dataset,
    path: Path,
    label: str,
    storage: str,
) -> Verification:
    """Write the model of an allocation and the allocation beside it, both or neither, after checking the model.

    Parameters
    ----------
    prepared, table, allocation, codes : what to write
    dataset : images for the check
    path : of the ONNX; the allocation gets the suffix .json
    label : the budget in one word, for the model's metadata
    storage : how weight codes lie in the file, a key of `emit.storage.STORAGES`
    """
    graph, network, placement = prepared.graph, prepared.network, prepared.placement
    bits = (allocation.weight_bits, allocation.activation_bits)
    reference = simulation(graph, network, placement, table, *bits, codes=codes)
    metadata = {
        "infoq_onnx.version": importlib.metadata.version("infoq-onnx"),
        "infoq_onnx.budget": label,
        "infoq_onnx.allocation": to_json(allocation),
        PREPROCESSING_KEY: to_json(dataset.preprocessing or preprocess.AS_IS),
    }
    model = qdq_model(graph, network, placement, table, *bits, codes, STORAGES[storage], metadata)
    with replacing(path) as onnx_file:
        onnx.save(model, onnx_file)
        verification = verify(onnx_file, graph, dataset, reference, str(path))
        write_text(path.with_suffix(".json"), to_json(allocation))
    return verification


def compress(
    model: Path | str,
    calib: Path | str,
    *,
    bounds: Mapping[Metric, str],
    weight_only: bool = False,
    pins: Sequence[str] = (),
    rounding: str = "nearest",
    analysis: Path | str | None = None,
    output: Path | str | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Compressed:
    """`analyze` and `allocate` in one call.

    Parameters
    ----------
    model, calib : see `analyze`
    bounds, weight_only, pins, rounding, output : see `allocate`
    analysis : folder for the analysis
    reporter : receives progress
    options : further arguments of `analyze`
    """
    folder = analyze(model, calib, output=analysis, reporter=reporter, **options)
    return allocate(
        folder,
        bounds=bounds,
        weight_only=weight_only,
        pins=pins,
        rounding=rounding,
        output=output,
        reporter=reporter,
    )


def evaluate(
    model: Path | str,
    data: Path | str,
    *,
    against: Path | str | None = None,
    classes: Path | str | None = None,
    preprocessing: str | Recipe | Preprocessing | None = None,
    samples: int | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Measure a model on images, alone or against another one.

    Parameters
    ----------
    model, against : ONNX files, quantized or not
    data, classes, preprocessing, samples, seed : as in `analyze`; a model that `allocate` wrote carries its
        preprocessing
    reporter : is told which images are left out

    Returns
    -------
    Evaluation

    Raises
    ------
    InfoQError
        See `infoq_onnx.errors`.
    """
    classifier = open_classifier(Path(model))
    reference = None if against is None else open_classifier(Path(against))
    if reference is not None and reference.input_shape != classifier.input_shape:
        raise ModelError(
            f"{against} takes inputs of {reference.input_shape}, {model} of {classifier.input_shape}: not comparable"
        )
    dataset = load_dataset(
        Path(data),
        classes=None if classes is None else Path(classes),
        preprocessing=preprocessing_for(preprocessing, classifier.input_shape) or classifier.preprocessing,
        input_shape=classifier.input_shape,
        samples=samples,
        seed=seed,
        n_classes=classifier.classes,
    )
    report_skipped(dataset, reporter or Silent())
    return evaluate_model(classifier, dataset, reference)


def demo(output: Path | str | None = None, *, reporter: Reporter | None = None) -> list[DemoRow]:
    """Run the whole path on the embedded model and images: analyze, then allocate uniform 4/4 and mixed bits that cost
    the same, then evaluate on images that were not used before.

    Parameters
    ----------
    output : folder to keep the files in; None works in a temporary one
    reporter : receives progress
    """
    reporter = reporter or Silent()
    with contextlib.ExitStack() as stack:
        if output is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = Path(output)
            stack.enter_context(created(folder))
        model = stack.enter_context(demo_model_path())
        images, test = stack.enter_context(demo_calibration_path()), stack.enter_context(demo_test_path())
        analysis = analyze(model, images, output=folder / "demo.infoq", reporter=reporter)
        uniform_model = allocate(analysis, uniform_bits=(4, 4), output=folder / "uniform.onnx")
        mixed_model = allocate(analysis, bounds={"bitops": "uniform:4/4"}, output=folder / "mixed.onnx")
        return [
            DemoRow("float", uniform_model.before, evaluate(model, test)),
            DemoRow("uniform 4/4", uniform_model.allocation.costs, evaluate(uniform_model.model_path, test)),
            DemoRow("mixed, same BitOps", mixed_model.allocation.costs, evaluate(mixed_model.model_path, test)),
        ]


# ------------------------------------------------------------------------------------------------------------- details


def _check_output(path: Path, prepared: PreparedModel) -> None:
    """Refuse to write over what allocate did not write."""
    if os.path.realpath(path) == os.path.realpath(prepared.path) or (
        path.is_file() and sha256_of(path) == prepared.sha256
    ):
        raise SettingsError(f"-o {path} is the float model itself; choose another name")
    beside = path.with_suffix(".json")
    if beside.is_file():
        try:
            from_json(Allocation, beside.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SettingsError(f"-o {path} would replace {beside}, no allocation; choose another name") from error


def _check_settings(settings: SweepSettings, bits: Sequence[int], samples: int | None) -> None:
    if wrong := sorted(set(bits) - set(BITS)):
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
