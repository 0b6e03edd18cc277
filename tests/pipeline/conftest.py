"""Fixtures of the tests of the verbs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from infoq_onnx.pipeline import analyze
from tests.networks import mlp
from tests.pipeline.cases import QUICK, Case, data_for, saved


@pytest.fixture(scope="package")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Three Gemm layers; nothing here may be changed."""
    folder = tmp_path_factory.mktemp("mlp")
    model, calib = saved(mlp(), folder / "mlp.onnx"), data_for(mlp(), folder / "calib.npz")
    return Case(model, calib, analyze(model, calib, output=folder / "mlp.infoq", **QUICK))


@pytest.fixture
def copied(case: Case, tmp_path: Path) -> Path:
    """A copy of the analysis that may be changed."""
    return Path(shutil.copytree(case.analysis, tmp_path / "copy.infoq"))
