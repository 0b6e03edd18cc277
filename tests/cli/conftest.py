"""A folder with a small classifier, its data and a finished analysis, made once and copied for each test."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from infoq_onnx import pipeline
from infoq_onnx.analyses import current, read_scores, scored, write_scores
from infoq_onnx.files import sha256_of
from tests.networks import mlp


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.onnx (12 features, 4 classes), data.npz (64 samples with the model's own labels) and model.infoq."""
    folder = tmp_path_factory.mktemp("finished")
    model = mlp()
    onnx.save(model, folder / "model.onnx")
    x = np.random.default_rng(0).standard_normal((64, 12)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": x})[0].argmax(axis=1)
    np.savez(folder / "data.npz", x=x, y=y)
    pipeline.analyze(
        folder / "model.onnx",
        folder / "data.npz",
        projections=8,
        bits=(2, 4, 8),
        trial_rounding="nearest",
        observers="selected",
        output=folder / "model.infoq",
    )
    return folder


def moved(folder: Path, before: str, now: str) -> None:
    """Change what the analysis in a folder says, as if it had been written so."""
    measurement = current(folder)
    measurement.analysis.write_text(measurement.analysis.read_text().replace(before, now))
    measurement.seal()
    for name in scored(measurement):
        table = read_scores(measurement, name)
        assert table is not None
        write_scores(measurement, dataclasses.replace(table, measured_sha256=sha256_of(measurement.analysis)))


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `finished`, whose analysis names the copied files, as the working folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    moved(tmp_path / "model.infoq", str(finished), str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path
