"""Which images an analysis was made with, and which are added to it: trials on the former are not made again.

Ranges and rounded weights stay those of the first images, so that all trials are of one and the same network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from infoq_onnx.analyses import Measurement, measurements, read_analysis
from infoq_onnx.data.dataset import Dataset
from infoq_onnx.errors import AnalysisError
from infoq_onnx.preparation import PreparedModel
from infoq_onnx.schema import Analysis, MeasurementSettings

INDEPENDENT = ("samples", "bits", "weight_only", "observers", "logits")
"""Settings that decide which trials there are, and not what one measures. Images and network are hashed separately."""


class Load(Protocol):
    """Chooses and loads samples."""

    def __call__(self, samples: int | None, without: npt.NDArray[np.int64] | None = None) -> Dataset:
        """Return so many samples, none of those that are taken already."""


def decisive(settings: MeasurementSettings) -> dict[str, object]:
    """Return the settings that decide what one trial measures."""
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in INDEPENDENT}


def extensible(
    folder: Path, prepared: PreparedModel, dataset: Dataset, settings: MeasurementSettings, load: Load, least: int
) -> Iterator[tuple[Measurement, list[Dataset]]]:
    """Yield the finished measurements that a set of samples may be an extension of.

    Parameters
    ----------
    folder : the analysis
    prepared : its model
    dataset : the samples that are asked for
    settings : what is to be measured
    load : loads samples of the same source
    least : fewest samples that are worth being added

    Yields
    ------
    measurement : one of the same model, source and settings on fewer samples
    blocks : list of Dataset
        The samples it was made with, those that it was extended by before, and what is missing of as many as `dataset`
        has, unless that is too few.
    """
    wanted = len(dataset) + len(dataset.skipped)
    reference = dataset.ref()
    for measurement in measurements(folder):
        try:
            found = read_analysis(measurement.path)
        except AnalysisError:
            continue
        had = found.calibration.requested + sum(block.requested for block in found.added)
        same = (
            found.model.sha256 == prepared.sha256
            and found.calibration.preprocessing == reference.preprocessing
            and decisive(found.settings) == decisive(settings)
        )
        if not same or had > wanted or (had == wanted and not found.added):
            continue
        blocks = _again(found, load)
        if blocks is None:
            continue
        if had + least <= wanted:
            blocks.append(load(wanted - had, np.concatenate([block.indices for block in blocks])))
        yield measurement, blocks


def _again(found: Analysis, load: Load) -> list[Dataset] | None:
    """Load the samples of an analysis; None where they are others now."""
    blocks: list[Dataset] = []
    first = found.calibration
    had = [(first.requested, first.sha256), *((one.requested, one.sha256) for one in found.added)]
    for requested, sha256 in had:
        taken = np.concatenate([known.indices for known in blocks]) if blocks else None
        blocks.append(load(requested, taken))
        if blocks[-1].sha256 != sha256:
            return None
    return blocks
