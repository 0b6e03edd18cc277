"""What an analysis would cost, without making it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from infoq_onnx.analyses import read_analysis
from infoq_onnx.cli import main
from infoq_onnx.errors import SettingsError
from infoq_onnx.graph.session import processors
from infoq_onnx.pipeline import plan, probing
from infoq_onnx.preparation import load_samples, prepare
from infoq_onnx.report import tables
from infoq_onnx.schema import MeasurementSettings, Plan, from_json
from infoq_onnx.sensitivity.trials import Bench, Problem
from infoq_onnx.simulate.running.prefix import Prefix
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


def test_memory_of_trials_follows_the_images(case: Case) -> None:
    """What is stored in front of the units grows with the images, unless it goes to a file."""
    prepared = prepare(case.model)
    images = load_samples(prepared, case.calib, None, None, 32, 0)
    settings = MeasurementSettings(bits=(2, 4), observers="none", projections=2)
    _, seen, grids = probing.ranges(prepared, images, settings)
    none = np.empty((len(images), 0))
    made = (seen.prepared.graph, seen.prepared.network, grids, images, seen.labels, seen.targets, none, settings, {})
    bench = Bench(Problem(*made))
    many = images.part(np.resize(np.arange(len(images)), 1_000_000))
    one, all_of_them, in_files = (
        probing.trying_bytes(bench, dataset, spilled=spilled)
        for dataset, spilled in ((images, False), (many, False), (many, True))
    )
    stored = max(Prefix(bench.problem.graph, bench.problem.network, many).stored_bytes())
    assert stored > 100e6
    assert all_of_them - one > 0.5 * stored
    assert in_files < all_of_them - 0.5 * stored


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


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("rows", [4, 100, 1000])
def test_rounding_is_counted_up_from_some_rows(rows: int, chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that takes 5 s to gather, 7 to fit, and at each bit-width 0.1 s for a chunk and 0.01 s for a row."""
    now, rounded = [0.0], []

    def takes(seconds: float) -> None:
        now[0] += seconds

    class Layer:
        def __init__(self, *_: object, **__: object) -> None:
            takes(7)

        def chunks(self) -> list[slice]:
            step = -(-rows // chunks)
            return [slice(start, start + step) for start in range(0, rows, step)]

        def round(self, _: int, chosen: list[slice]) -> None:
            count = len(range(*chosen[0].indices(rows)))
            rounded.append(count)
            takes(0.1 + 0.01 * count)

    monkeypatch.setattr(probing.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(probing, "gathered", lambda *_: takes(5) or SimpleNamespace(moments=None, clipped=None))
    monkeypatch.setattr(probing, "LayerToRound", Layer)
    form = SimpleNamespace(shape=(1, rows, 9), rows=lambda: None)
    found = probing._rounding_seconds(None, SimpleNamespace(bias=None), form, (2, 8))
    assert found == pytest.approx(5 + 7 + 2 * (len(Layer().chunks()) * 0.1 + rows * 0.01))
    assert max(rounded) <= max(64, 16 * processors())


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
