"""What an analysis would cost, without making it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from infoq_onnx.analyses import read_analysis
from infoq_onnx.cli import main
from infoq_onnx.errors import SettingsError
from infoq_onnx.pipeline import plan
from infoq_onnx.report import tables
from infoq_onnx.schema import Plan, from_json
from tests.networks import Builder
from tests.pipeline.cases import Case, refused


def test_trials_are_those_of_the_analysis(case: Case) -> None:
    found = plan(case.model, case.calib, bits=(2, 4, 8), projections=3, probe_seconds=0.05)
    assert found.trials == len(read_analysis(case.analysis).trials)
    assert found.images == 32
    assert found.workers == 1
    # each of three layers' weights and inputs: the rest of the network twice, and what lies in front of it
    assert 6 <= found.passes <= 18
    assert found.images_a_second > 0
    assert found.seconds > 0
    assert found.bytes > 50e6
    half = plan(case.model, case.calib, bits=(2, 4, 8), projections=3, weight_only=True, probe_seconds=0.05)
    assert half.trials == found.trials // 2
    both = plan(case.model, case.calib, bits=(2, 4, 8), projections=3, probe_seconds=0.05, workers=2)
    assert both.bytes > 2 * found.bytes * 0.9


@pytest.mark.parametrize(("effort", "images", "most"), [("quick", 64, 64), ("normal", 64, 150), ("full", 150, 150)])
def test_efforts_are_counted(effort: str, images: int, most: int, case: Case, tmp_path: Path) -> None:
    with np.load(case.calib) as arrays:
        np.savez(tmp_path / "more.npz", x=np.resize(arrays["x"], (150, *arrays["x"].shape[1:])))
    options = {"projections": 3, "probe_seconds": 0.05, "effort": effort}
    found = plan(case.model, tmp_path / "more.npz", **options)
    assert (found.images, found.most_images) == (images, most)
    assert found.trials == 6 * (6 if effort == "full" else 4)
    assert ("at most 150" in tables.plan(found)) == (effort == "normal")


def test_what_rounding_takes_is_counted(case: Case, tmp_path: Path) -> None:
    b = Builder()
    y = b.relu(b.gemm("x", "fc1", 12, 2048), "relu")
    onnx.save(b.model(b.gemm(y, "fc2", 2048, 4), (12,), (4,)), tmp_path / "m.onnx")
    options = {"bits": (2, 8), "projections": 2, "probe_seconds": 0.05}
    rounded = plan(tmp_path / "m.onnx", case.calib, **options)
    nearest = plan(tmp_path / "m.onnx", case.calib, trial_rounding="nearest", **options)
    # moments of 2048 inputs, eight times
    assert rounded.bytes - nearest.bytes > 0.9 * 64 * 2048**2


def test_wrong_settings_are_told_as_by_analyze(case: Case) -> None:
    refused(SettingsError, "`bits`: 9", call=lambda: plan(case.model, case.calib, bits=(2, 9)))
    refused(SettingsError, "`encoder` 'resnet'", call=lambda: plan(case.model, case.calib, encoder="resnet"))


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_leaves_nothing(as_json: bool, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--bits", "2,8", "--projections", "2", "--dry-run", *(["--json"] if as_json else [])]
    result = CliRunner().invoke(main, ["analyze", str(case.model), "--calib", str(case.calib), *options])
    assert result.exit_code == 0, result.output
    assert list(tmp_path.iterdir()) == []
    if as_json:
        assert from_json(Plan, result.stdout).trials == 6
    else:
        assert result.stdout.startswith("6 trials on 32 images: as much as ")
        assert "memory with 1 worker, after ranges and rounding" in result.stdout


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (150, "2 min"), (5900, "98 min"), (7260, "2 h 1 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text
