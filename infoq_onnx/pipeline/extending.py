"""Extension of an analysis by further images. Trials on the images of the analysis are not repeated.

Ranges and rounded weights stay those of the first images, so that all trials use the same network.
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

INDEPENDENT = ("samples", "bits", "effort", "weight_only", "observers", "logits")
"""Settings that decide which trials there are, and not what one measures. Images and network are hashed separately."""


class Load(Protocol):
    """A function that chooses and loads samples."""

    def __call__(self, samples: int | None, without: npt.NDArray[np.int64] | None = None) -> Dataset:
        """Return `samples` samples (None: all), except those at the positions `without` of the source."""


def decisive(settings: MeasurementSettings) -> dict[str, object]:
    """Return the settings that determine what a trial measures."""
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in INDEPENDENT}


def extensible(
    folder: Path, prepared: PreparedModel, dataset: Dataset, settings: MeasurementSettings, load: Load, least: int
) -> Iterator[tuple[Measurement, list[Dataset]]]:
    """Yield the finished measurements that can be extended to a set of samples.

    Parameters
    ----------
    folder : the analysis folder
    prepared : the model
    dataset : the requested samples
    settings : the requested settings
    load : loads samples from the same source
    least : minimum number of samples to add

    Yields
    ------
    measurement : Measurement
        A measurement of the same model, source and settings with fewer samples.
    blocks : list of Dataset
        The samples of the measurement, those of each earlier extension, and the samples missing to the size of
        `dataset`, unless fewer than `least` are missing.
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
    """Load the samples of an analysis; None if they have changed."""
    blocks: list[Dataset] = []
    first = found.calibration
    had = [(first.requested, first.sha256), *((one.requested, one.sha256) for one in found.added)]
    for requested, sha256 in had:
        taken = np.concatenate([known.indices for known in blocks]) if blocks else None
        blocks.append(load(requested, taken))
        if blocks[-1].sha256 != sha256:
            return None
    return blocks
