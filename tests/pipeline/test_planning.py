"""What an analysis would cost, without making it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from infoq_onnx.analyses import read_analysis
from infoq_onnx.cli import main
from infoq_onnx.errors import SettingsError
from infoq_onnx.pipeline import plan, probing
from infoq_onnx.report import tables
from infoq_onnx.schema import Plan, from_json
from tests.networks import SMALL, Builder
from tests.pipeline.cases import Case, data_for, refused, saved


def test_trials_are_those_of_the_analysis(case: Case) -> None:
    found = plan(case.model, case.calib, bits=(2, 4, 8), projections=3, probe_seconds=0.05)
    assert found.trials == len(read_analysis(case.analysis).trials)
    assert found.images == 32
    assert found.workers == 1
    # each of three layers' weights and inputs: the rest of the network twice, and what lies in front of it
    assert 6 <= found.passes <= 18
    assert found.images_a_second > 0
    assert found.seconds == found.ranges_seconds + found.rounding_seconds + found.trials_seconds
    assert min(found.ranges_seconds, found.trials_seconds) > 0
    assert found.rounding_seconds > 0
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
    assert (rounded.rounding_seconds > 0, nearest.rounding_seconds) == (True, 0)
    # moments of 2048 inputs, eight times
    assert rounded.bytes - nearest.bytes > 0.8 * 64 * 2048**2


@pytest.mark.parametrize("observers", ["none", "selected"])
@pytest.mark.parametrize("name", ["depthwise", "attention", "fixed batch"])
def test_any_network_can_be_planned(name: str, observers: str, tmp_path: Path) -> None:
    """With as few images as an analysis needs, and without writing anything."""
    model = SMALL[name]()
    path, calib = saved(model, tmp_path / "m.onnx"), data_for(model, tmp_path / "calib.npz", 16)
    options = {"projections": 2, "probe_seconds": 0.05, "bits": (2, 4), "observers": observers}
    found = plan(path, calib, **options)
    assert 0 < found.seconds < 600
    assert sorted(tmp_path.iterdir()) == [calib, path]


@given(st.lists(st.tuples(st.sampled_from([1, 8]), st.integers(1, 64), st.integers(1, 300)), min_size=1), st.data())
def test_times_of_layers_follow_the_power_laws(shapes: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """Shapes that were probed have what was measured; others scale with factors of d³, moments and rows of d²."""
    known = {(g, r, d, 9): probing._Layer(1e-7 * g * d**2, 1e-9 * g * d**3, 1e-8 * g * d**2) for g, r, d in shapes}
    asked = data.draw(st.tuples(st.sampled_from([g for g, _, _ in shapes]), st.integers(1, 64), st.integers(1, 5000)))
    groups, rows, width = asked
    expected = groups * (1e-7 * width**2 + 1e-9 * width**3 + rows * 1e-8 * width**2)
    assert probing._extrapolated(known, (*asked, 9)) == pytest.approx(expected)


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
        assert "for rounding, " in result.stdout
        assert result.stdout.endswith("of memory, with 1 worker\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (150, "2 min"), (5900, "98 min"), (7260, "2 h 1 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text
