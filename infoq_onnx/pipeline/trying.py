"""Run the trials on one block of images after the other, until the decision is settled."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infoq_onnx.analyses import Measurement
from infoq_onnx.data.dataset import Dataset
from infoq_onnx.execute.resources import Resources
from infoq_onnx.pipeline.looking import Seen
from infoq_onnx.pipeline.settling import TOLERATED, regret
from infoq_onnx.reporter import Reporter
from infoq_onnx.schema import BASELINE_BITS, CalibrationRef, LocalError, MeasurementSettings
from infoq_onnx.sensitivity.blocks import positions
from infoq_onnx.sensitivity.criteria.pooled import divergences, pool
from infoq_onnx.sensitivity.journal import Journal, open_journal
from infoq_onnx.sensitivity.local_error import interpolated, local_errors
from infoq_onnx.sensitivity.pooling import pooled
from infoq_onnx.sensitivity.sweep import SweepResult, sweep, tried_bits
from infoq_onnx.sensitivity.targets import groups, has_classmates
from infoq_onnx.sensitivity.trials import Problem
from infoq_onnx.simulate.running.spill import Spill

Look = Callable[[Dataset, bool], Seen]
"""Runs the float network over added images; the second argument states whether groups of images replace the labels."""


@dataclass(frozen=True)
class Tried:
    """The trials on all blocks of images that were used."""

    result: SweepResult
    """Pooled over the blocks."""
    local_errors: tuple[LocalError, ...]
    images: int
    """Number of images used."""
    float_top1: float | None
    """Top-1 accuracy of the float model on all images, used or not, as a share of 1; None without labels."""
    calibration: CalibrationRef
    """The images of the measurement, with the Y that trials used."""


@dataclass(frozen=True)
class _Block:
    """One block of images, as trials see it."""

    dataset: Dataset
    labels: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    encoded: npt.NDArray[np.float64]
    index: int
    """0 for images of the measurement, else the number of the extension."""
    whole: bool
    """The block has all images of the measurement or of the extension."""


def run_trials(
    problem: Problem,
    seen: Seen,
    datasets: Sequence[Dataset],
    look: Look,
    measurement: Measurement,
    fingerprint: str,
    resources: Resources,
    spill: Spill | None,
    reporter: Reporter,
) -> Tried:
    """Run the trials of a measurement.

    Parameters
    ----------
    problem : the network and its grids, with the images of the measurement
    seen : the images of the measurement after the first pass of the float network
    datasets : the images of the measurement, then those of each extension
    look : runs the float network over the images of an extension
    measurement, fingerprint : where the journals are, and what they belong to
    resources : see `analyze`
    spill : where to store activations that would take too much memory
    reporter : receives progress

    Returns
    -------
    Tried
    """
    settings, network = problem.settings, problem.network
    grouped = seen.calibration.targets == "groups"
    if settings.effort != "full":
        first = positions(datasets[0].labels, len(datasets[0]), settings.effort, settings.seed)[0]
        grouped = not has_classmates(seen.labels[first], settings.neighbours)
    looked = [seen, *(look(dataset, grouped) for dataset in datasets[1:])]
    blocks = [
        block
        for index, (dataset, one) in enumerate(zip(datasets, looked, strict=True))
        for block in _blocks(dataset, one, index, settings, grouped=grouped)
    ]
    errors: tuple[LocalError, ...] = ()
    results: list[SweepResult] = []
    used: list[int] = []
    for block in blocks:
        own = dataclasses.replace(
            problem, dataset=block.dataset, labels=block.labels, targets=block.targets, encoded=block.encoded
        )
        if not errors:
            wanted = [b for b in settings.bits if b != BASELINE_BITS]
            errors = interpolated(local_errors(own, tried_bits(settings), spill), wanted)
        journal = _journal(measurement, fingerprint, block.dataset, block.index, whole=block.whole)
        seeing = results[0].seeing if results else None
        results.append(sweep(own, journal, functools.partial(reporter.progress, "trials"), resources, seeing))
        used.append(len(block.dataset))
        if settings.effort == "normal" and block is not blocks[-1]:
            left = regret(network, pool(divergences(pooled(results, used).trials), errors), settings)
            if left <= TOLERATED:
                break
            reporter.note(
                f"{sum(used)} images: noise could still make the choice of bits {100 * left:.0f} % worse; trials go on "
                "with more images"
            )
    known = [one.float_top1 for one in looked if one.float_top1 is not None]
    weights = [len(dataset) for dataset in datasets]
    top1 = float(np.average(known, weights=weights)) if len(known) == len(looked) else None
    targets = "groups" if grouped else seen.calibration.labels
    calibration = dataclasses.replace(seen.calibration, targets=targets)
    return Tried(pooled(results, used), errors, sum(used), top1, calibration)


def first_journal(
    measurement: Measurement, fingerprint: str, dataset: Dataset, settings: MeasurementSettings
) -> Journal:
    """Open the journal of the first block of images.

    Parameters
    ----------
    measurement, fingerprint : the measurement
    dataset : its images
    settings : the settings, which determine the block

    Returns
    -------
    Journal
    """
    part = positions(dataset.labels, len(dataset), settings.effort, settings.seed)[0]
    whole = len(part) == len(dataset)
    return _journal(measurement, fingerprint, dataset if whole else dataset.part(part), 0, whole=whole)


def _journal(measurement: Measurement, fingerprint: str, images: Dataset, index: int, *, whole: bool) -> Journal:
    """Open the journal of a block of the images of a measurement (index 0) or of an extension."""
    path = measurement.added_journal(index) if index else measurement.journal
    if not whole:
        path = path.with_name(f"{path.stem}.{images.sha256[:8]}{path.suffix}")
    return open_journal(path, fingerprint if whole and not index else f"{fingerprint} {images.sha256}")


def _blocks(
    dataset: Dataset, seen: Seen, index: int, settings: MeasurementSettings, *, grouped: bool
) -> Iterator[_Block]:
    """Yield the blocks of the images of a measurement (index 0) or of an extension."""
    for part in positions(dataset.labels, len(dataset), settings.effort, settings.seed):
        whole = len(part) == len(dataset)
        images = dataset if whole else dataset.part(part)
        targets = seen.targets
        if not whole:
            targets = groups(seen.logits[part]) if grouped else seen.labels[part]
        yield _Block(images, seen.labels[part], targets, seen.encoded[part], index, whole)
