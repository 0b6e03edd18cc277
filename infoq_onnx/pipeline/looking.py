"""First pass over the model and the images, before the measurement: find Y and X_E, and identify the measurement."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.data.encoders import encoder_file
from infoq_onnx.errors import ModelError
from infoq_onnx.graph.external import model_sha256
from infoq_onnx.graph.session import open_session
from infoq_onnx.pipeline.extending import decisive
from infoq_onnx.preparation import PreparedModel, encode_inputs, with_splits
from infoq_onnx.reporter import Reporter
from infoq_onnx.schema import CalibrationRef, MeasurementSettings, Split, to_json
from infoq_onnx.sensitivity.observers import candidates
from infoq_onnx.sensitivity.targets import groups, has_classmates
from infoq_onnx.simulate.equalization.channel_splitting import find_splits
from infoq_onnx.simulate.running.batching import batch_size, logits_of

Labels = npt.NDArray[np.int64]

_SAME = 1e-6
"""Differences of scores that are rounding of float32 sums, as a share of the largest score."""


@dataclass(frozen=True)
class Seen:
    """The model and the images after the first pass of the float network."""

    prepared: PreparedModel
    """The model, with split channels."""
    splits: tuple[Split, ...]
    """The split channels."""
    float_top1: float | None
    """Top-1 accuracy of the float model, as a share of 1; None without labels."""
    labels: Labels
    """True labels, or the float network's predictions [N]."""
    targets: Labels
    """Y of SMI(L; Y) [N]."""
    logits: npt.NDArray[np.float32]
    """Logits of the float network [N, C]."""
    encoded: npt.NDArray[np.float64]
    """Encoded inputs X_E [N, e]; [N, 0] before `encode`, and if mutual information is not measured."""
    calibration: CalibrationRef


def look(
    prepared: PreparedModel,
    dataset: Dataset,
    settings: MeasurementSettings,
    reporter: Reporter,
    *,
    grouped: bool | None = None,
) -> Seen:
    """Run the float network over the images, to find Y and the channels to split.

    Parameters
    ----------
    prepared : the model
    dataset : the images
    settings : the settings of the measurement
    reporter : receives remarks
    grouped : whether groups of images replace the labels as Y; None: only if too few images share a label

    Returns
    -------
    Seen

    Raises
    ------
    ModelError
        The logits are not finite, or the same for all images.
    """
    logits = logits_of(open_session(prepared.graph.model), prepared.graph, dataset, batch_size(prepared.graph))
    if not np.isfinite(logits).all():
        raise ModelError(
            f"{prepared.path} computes NaN or infinite logits on the calibration data; check the preprocessing, or "
            "export the model again so that its values stay within float32"
        )
    if np.ptp(logits, axis=0).max() <= _SAME * np.abs(logits).max():
        raise ModelError(
            f"{prepared.path} gives all {len(dataset)} images the same scores: check the images, their preprocessing, "
            "and whether the model was exported with its weights"
        )
    splits: tuple[Split, ...] = ()
    if settings.equalize:
        splits = find_splits(prepared.graph, prepared.network, prepared.placement, dataset, lambda _: None)
        prepared = with_splits(prepared, splits)
    predicted = logits.argmax(axis=1).astype(np.int64)
    float_top1 = None if dataset.labels is None else float(np.mean(predicted == dataset.labels))
    _report_accuracy(float_top1, prepared.network.classes, len(dataset), reporter)
    for one in splits:
        reporter.note(f"channel {one.channel} of {one.tensor} dwarfs the others: it is read in {one.parts} parts")
    labels = predicted if dataset.labels is None else dataset.labels
    calibration = dataset.ref()
    targets = labels
    if not has_classmates(labels, settings.neighbours) if grouped is None else grouped:
        targets = groups(logits)
        calibration = dataclasses.replace(calibration, targets="groups")
        if settings.observing != "none":
            reporter.note(
                f"too few images a class to measure information on classes: {len(np.unique(targets))} groups of images "
                "that the float model finds alike stand in for them"
            )
    calibration = dataclasses.replace(
        calibration,
        path=str(Path(calibration.path).resolve()),
        classes_path=None if calibration.classes_path is None else str(Path(calibration.classes_path).resolve()),
    )
    return Seen(prepared, splits, float_top1, labels, targets, logits, np.empty((len(dataset), 0)), calibration)


def encode(seen: Seen, dataset: Dataset, settings: MeasurementSettings) -> Seen:
    """Add X_E to what was found in the first pass, if mutual information is measured."""
    if settings.observing == "none":
        return seen
    return dataclasses.replace(seen, encoded=encode_inputs(settings.encoder, seen.prepared, dataset))


def versions() -> dict[str, str]:
    """Return the versions of the packages that determine the results."""
    return {name: importlib.metadata.version(name) for name in ("infoq-onnx", "onnxruntime", "numpy")}


def fingerprint_of(seen: Seen, settings: MeasurementSettings) -> str:
    """Hash everything that determines what a trial measures, but not the settings that only select trials.

    Parameters
    ----------
    seen : the model and the images
    settings : the settings of the measurement

    Returns
    -------
    str
        SHA-256, in hexadecimal.
    """
    encoder = encoder_file(settings.encoder)
    parts = [
        seen.prepared.sha256,
        seen.calibration.sha256,
        to_json(seen.calibration.preprocessing),
        str(sorted(decisive(settings).items())),
        "" if encoder is None else model_sha256(encoder),
        str(versions()),
        # layers and candidates follow from the model, but by rules that can change with the code
        to_json(seen.prepared.network),
        str(candidates(seen.prepared.graph, seen.prepared.network)),
    ]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


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
