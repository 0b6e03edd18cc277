"""What the tests of the verbs share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from infoq_onnx.analyses import Measurement, current, measurements
from infoq_onnx.errors import AnalysisError, InfoQError
from infoq_onnx.graph.session import open_session
from infoq_onnx.simulate.running.batching import batch_size, logits_of
from tests.prepared import dataset_of, images, is_one_line, searched

QUICK: dict[str, Any] = {
    "projections": 3,
    "bits": (2, 4, 8),
    "trial_rounding": "nearest",
    "observers": "selected",
}
"""Settings that make an analysis cheap, with all that it can measure."""
CODES = "codes.npz"
"""File of one whose trials were rounded by gptq, besides."""
SCORES = tuple(f"scores/{name}.json" for name in ("infoq", "infoq-pooled", "kl", "kl-pooled"))
NAMES = ("analysis.json", "ranges.npz", "journal.jsonl", "SHA256SUMS", *SCORES)
"""Files of a finished measurement."""


@dataclass(frozen=True)
class Case:
    """A model and its calibration data on disk, with an analysis that tests may read."""

    model: Path
    calib: Path
    analysis: Path


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def data_for(model: onnx.ModelProto, path: Path, count: int = 32, *, labelled: bool = True) -> Path:
    """Noise, labelled with what the model predicts, two labels aside."""
    graph, network, _ = searched(model)
    values = images(network.input_shape, count)
    arrays: dict[str, Any] = {"x": values}
    if labelled:
        logits = logits_of(open_session(graph.model), graph, dataset_of(values), batch_size(graph))
        arrays["y"] = logits.argmax(axis=1).astype(np.int64)
        arrays["y"][:2] = (arrays["y"][:2] + 1) % network.classes
    np.savez(path, **arrays)
    return path


class Listener:
    """Collects what is reported; raises at a trial."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.notes, self.warnings = stop_at, list[str](), list[str]()
        self.stages: dict[str, list[tuple[int, int]]] = {}

    def progress(self, stage: str, detail: str, done: int, total: int, share: float | None = None) -> None:  # noqa: ARG002
        if stage == "trials" and self.stop_at is not None and done >= self.stop_at:
            raise KeyboardInterrupt
        self.stages.setdefault(stage, []).append((done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def measured(folder: Path) -> Measurement:
    """The measurement in use, or the only one of an analysis that is not finished."""
    with contextlib.suppress(AnalysisError):
        return current(folder)
    (found,) = measurements(folder)
    return found


def content(folder: Path, *names: str) -> list[bytes]:
    """Bytes of files of a folder, or of the measurement in use where it is an analysis."""
    place = measured(folder).path if measurements(folder) else folder
    return [(place / name).read_bytes() for name in names]


def files_of(folder: Path) -> list[str]:
    """Files of an analysis, relative to the measurement in use."""
    place = measured(folder).path
    assert sorted(path.name for path in folder.iterdir()) == sorted([place.name, "current"])
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def refused(kind: type[InfoQError], *parts: str, call: Callable[[], object]) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert is_one_line(caught.value, *parts)
