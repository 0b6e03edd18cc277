"""A folder with a small classifier, its data and a finished analysis, made once and copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from infoq_onnx import pipeline
from infoq_onnx.analyses import CHECKSUMS
from infoq_onnx.files import write_checksums
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
        output=folder / "model.infoq",
    )
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `finished`, whose analysis names the copied files, as the working folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    analysis = tmp_path / "model.infoq" / "analysis.json"
    analysis.write_text(analysis.read_text().replace(str(finished), str(tmp_path)))
    write_checksums(analysis.parent, ("analysis.json", "ranges.npz"), CHECKSUMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path
