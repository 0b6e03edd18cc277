"""Two runs, stopped runs, killed runs, other settings: what is the same, and what is started anew."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from infoq_onnx.analyses import measurements, read_analysis, read_analyzed
from infoq_onnx.errors import (
    AnalysisError,
)
from infoq_onnx.pipeline import allocate, analyze, score, trying
from infoq_onnx.schema import Trial, from_json
from infoq_onnx.sensitivity import blocks
from infoq_onnx.sensitivity.observers import candidates
from infoq_onnx.sensitivity.trials import Baseline, Bench, Task
from tests.networks import SMALL, mlp, residual_convnet
from tests.pipeline.cases import NAMES, QUICK, Case, Listener, content, data_for, files_of, measured, refused, saved
from tests.prepared import images


@pytest.mark.parametrize("name", ["residual", "attention"])
def test_two_runs_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    model = saved(SMALL[name](), tmp_path / "float.onnx")
    calib = data_for(SMALL[name](), tmp_path / "calib.npz")
    folders = [analyze(model, calib, output=tmp_path / f"{run}.infoq", **QUICK) for run in "ab"]
    assert content(folders[0], *NAMES) == content(folders[1], *NAMES)
    for run, folder in zip("ab", folders, strict=True):
        allocate(folder, bounds={"bitops": "uniform:4/4"}, output=tmp_path / f"{run}.onnx")
    assert content(tmp_path, "a.onnx", "a.json") == content(tmp_path, "b.onnx", "b.json")


@pytest.mark.parametrize("stop", [0, 2, 7, 12])
def test_a_run_that_was_stopped_ends_with_the_same_bytes(stop: int, case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "a.infoq"
    with pytest.raises(KeyboardInterrupt):
        analyze(case.model, case.calib, output=folder, reporter=Listener(stop), **QUICK)
    assert not list(folder.rglob("analysis.json"))
    refused(AnalysisError, "not finished", call=lambda: read_analysis(folder))
    listener = Listener()
    analyze(case.model, case.calib, output=folder, reporter=listener, **QUICK)
    assert content(folder, *NAMES) == content(case.analysis, *NAMES)
    assert any("going on" in note for note in listener.notes) == (stop > 0)
    assert files_of(folder) == sorted(NAMES)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_process_ends_with_the_same_bytes(workers: int, case: Case, tmp_path: Path) -> None:
    """Killed for good between two trials, with a torn line and a lock left behind."""
    folder = tmp_path / "a.infoq"
    code = (
        "import os, sys\n"
        "from infoq_onnx.pipeline import analyze\n"
        "class Killer:\n"
        "    def note(self, text): pass\n"
        "    def warn(self, text): pass\n"
        "    def progress(self, stage, detail, done, total, share=None):\n"
        "        if stage == 'trials' and done >= 5: os.kill(os.getpid(), 9)\n"
        f"analyze(sys.argv[1], sys.argv[2], output=sys.argv[3], reporter=Killer(), workers={workers}, **{QUICK!r})"
    )
    arguments = [str(case.model), str(case.calib), str(folder)]
    killed = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert (folder / ".lock").exists()
    with measured(folder).journal.open("a") as journal:
        journal.write('{"changes": [{"bits": 2, "unit": {"ki')
    analyze(case.model, case.calib, output=folder, workers=workers, **QUICK)
    assert content(folder, *NAMES) == content(case.analysis, *NAMES)


def test_a_second_run_changes_nothing_and_tries_nothing(
    case: Case, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "infoq_onnx.sensitivity.trials.Bench.trials", lambda *_: pytest.fail("a finished trial was run again")
    )
    analyze(case.model, case.calib, output=copied, **QUICK)
    assert content(copied, *NAMES) == content(case.analysis, *NAMES)


def test_what_a_killed_run_was_writing_goes(case: Case, copied: Path) -> None:
    for name in (".SHA256SUMS.wene46gc", ".analysis.json.x1y2.json", ".codes.next.npz.ab_c.npz"):
        (measured(copied).path / name).write_bytes(b"half")
    analyze(case.model, case.calib, output=copied, **QUICK)
    assert content(copied, *NAMES) == content(case.analysis, *NAMES)
    assert files_of(copied) == sorted(NAMES)


@pytest.mark.parametrize("change", [{"seed": 1}, {"projections": 4}, {"trial_rounding": "gptq"}, {"samples": 31}])
def test_another_measurement_is_kept_beside(change: dict[str, Any], case: Case, copied: Path, tmp_path: Path) -> None:
    settings = {**QUICK, **change}
    listener, before = Listener(), measured(copied)
    analyze(case.model, case.calib, output=copied, reporter=listener, **settings)
    assert not any("going on" in note for note in listener.notes)
    fresh = analyze(case.model, case.calib, output=tmp_path / "fresh.infoq", **settings)
    assert content(copied, *NAMES) == content(fresh, *NAMES)
    assert content(copied, "analysis.json") != content(case.analysis, "analysis.json")
    assert any(before.path.name in note and "kept" in note for note in listener.notes)
    # the first one can still be used, by its own name, and is in use again without any work
    assert read_analysis(before.path) == read_analysis(case.analysis)
    allocate(before.path, uniform_bits=(4, 4), output=tmp_path / "m.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("infoq_onnx.sensitivity.trials.Bench.trials", lambda *_: pytest.fail("a trial was run again"))
        analyze(case.model, case.calib, output=copied, **QUICK)
    assert content(copied, *NAMES) == content(case.analysis, *NAMES)
    assert len(measurements(copied)) == 2


def test_force_forgets_what_was_measured(case: Case, copied: Path) -> None:
    listener = Listener()
    analyze(case.model, case.calib, output=copied, force=True, reporter=listener, **{**QUICK, "seed": 1})
    assert len(measurements(copied)) == 1
    assert any("`force`" in warning for warning in listener.warnings)
    assert read_analysis(copied).settings.seed == 1


TRIALS = "infoq_onnx.sensitivity.trials.Bench.trials"


def run(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, tuple[int, ...]]]:
    """Collects the trials that are run, while it runs them."""
    found: list[tuple[str, str, tuple[int, ...]]] = []

    def noted(self: Bench, task: Task, baseline: Baseline) -> list[Trial]:
        found.append((task.unit.kind, task.unit.name, task.bits))
        return trials(self, task, baseline)

    trials = Bench.trials
    monkeypatch.setattr(TRIALS, noted)
    return found


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_only_further_widths_are_tried(
    rounding: str, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {**QUICK, "trial_rounding": rounding, "effort": "full"}
    folder = analyze(case.model, case.calib, output=tmp_path / "a.infoq", **settings)
    fresh = analyze(case.model, case.calib, output=tmp_path / "b.infoq", **{**settings, "bits": (2, 4, 5, 8)})
    trials = run(monkeypatch)
    # 8 and 2 are there, so that only 5 bits are new, and 4 bits stay
    analyze(case.model, case.calib, output=folder, **{**settings, "bits": (2, 5)})
    assert len(trials) == 6
    assert {bits for _, _, bits in trials} == {(5,)}
    assert content(folder, *NAMES) == content(fresh, *NAMES)


def test_only_activations_are_tried_where_weights_were(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = analyze(case.model, case.calib, output=tmp_path / "a.infoq", weight_only=True, **QUICK)
    trials = run(monkeypatch)
    analyze(case.model, case.calib, output=folder, **QUICK)
    assert [kind for kind, _, _ in trials] == 3 * ["activation"]
    assert content(folder, *NAMES) == content(case.analysis, *NAMES)
    analyze(case.model, case.calib, output=folder, weight_only=True, **QUICK)
    assert not read_analysis(folder).settings.weight_only


def test_further_observers_look_at_what_they_have_not_seen(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {**QUICK, "bits": (2, 5, 6), "effort": "full"}
    folder = analyze(case.model, case.calib, output=tmp_path / "a.infoq", **settings)
    fresh = analyze(case.model, case.calib, output=tmp_path / "b.infoq", **{**settings, "observers": "all"})
    trials = run(monkeypatch)
    analyze(case.model, case.calib, output=folder, **{**settings, "observers": "all"})
    # 2 bits were seen by all
    assert {bits for _, _, bits in trials} == {(5, 6)}
    assert content(folder, *NAMES) == content(fresh, *NAMES)


def test_only_further_images_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trials on both sets of images, taken together: means over all images."""
    model, calib = saved(mlp(), tmp_path / "mlp.onnx"), data_for(mlp(), tmp_path / "calib.npz", 80)
    folder = analyze(model, calib, output=tmp_path / "a.infoq", samples=32, effort="full", **QUICK)
    before = read_analysis(folder)
    images: list[int] = []
    trials = Bench.trials

    def noted(self: Bench, task: Task, baseline: Baseline) -> list[Trial]:
        images.append(len(self.problem.dataset))
        found = trials(self, task, baseline)
        assert {len(self.problem.labels), len(self.problem.targets), len(self.problem.encoded)} == {images[-1]}
        return found

    monkeypatch.setattr(TRIALS, noted)
    listener = Listener()
    analyze(model, calib, output=folder, samples=72, reporter=listener, effort="full", **QUICK)
    assert any("extended by 40 others" in note for note in listener.notes)
    assert set(images) == {40}
    found = read_analysis(folder)
    assert len(measurements(folder)) == 1
    assert (found.fingerprint, found.calibration) == (before.fingerprint, before.calibration)
    assert found.settings.samples == 72
    assert [(block.samples, block.requested) for block in found.added] == [(40, 40)]
    # KL is a mean over images: those of the added ones alone follow from both
    journal = measured(folder).added_journal(1).read_text(encoding="utf-8").splitlines()[1:]
    added = {trial.changes: trial for trial in (from_json(Trial, line) for line in journal)}
    for trial, first in zip(found.trials, before.trials, strict=True):
        other = added[trial.changes]
        assert trial.kl == pytest.approx((32 * first.kl + 40 * other.kl) / 72)
        assert trial.top1_drop == pytest.approx((32 * first.top1_drop + 40 * other.top1_drop) / 72)
        for tensor, delta in trial.deltas.items():
            parts = (first.deltas[tensor], other.deltas[tensor])
            assert delta.xl == pytest.approx((32 * parts[0].xl + 40 * parts[1].xl) / 72)
            assert delta.ly_se == pytest.approx(((32 * parts[0].ly_se) ** 2 + (40 * parts[1].ly_se) ** 2) ** 0.5 / 72)
    # scores are of all images
    assert read_analyzed(folder).scores["kl"].scores[0].value == found.trials[0].kl
    # the same again, and further widths on all images
    images.clear()
    analyze(model, calib, output=folder, samples=72, effort="full", **QUICK)
    assert images == []
    analyze(model, calib, output=folder, samples=72, **{**QUICK, "bits": (2, 3, 4)})
    assert sorted(set(images)) == [32, 40]
    assert {trial.bits for trial in read_analysis(folder).trials} == {2, 3, 4}
    allocate(folder, bounds={"compression": "8"}, output=tmp_path / "m.onnx")
    # eight more are too few for an estimate
    images.clear()
    listener = Listener()
    analyze(model, calib, output=folder, samples=None, reporter=listener, effort="full", **QUICK)
    assert images == []
    assert any("8 images more" in note for note in listener.notes)
    assert read_analysis(folder).settings.samples == 72


def test_images_that_have_changed_are_not_added_to(tmp_path: Path) -> None:
    model, calib = saved(mlp(), tmp_path / "mlp.onnx"), data_for(mlp(), tmp_path / "calib.npz", 64)
    folder = analyze(model, calib, output=tmp_path / "a.infoq", samples=32, **QUICK)
    with np.load(calib) as arrays:
        np.savez(calib, x=arrays["x"] * np.float32(1.01), y=arrays["y"])
    analyze(model, calib, output=folder, samples=64, **QUICK)
    assert len(measurements(folder)) == 2
    assert read_analysis(folder).added == ()


def test_options_of_a_criterion_outlive_further_widths(case: Case, copied: Path) -> None:
    before = score(copied, criterion="infoq", options={"debias": True, "threshold": -1.0})
    analyze(case.model, case.calib, output=copied, **{**QUICK, "bits": (2, 3, 4)})
    after = read_analyzed(copied).scores["infoq"]
    assert after.options == before.options == {"debias": True, "one_over_b": True, "threshold": -1.0}
    assert {one.bits for one in after.scores} == {2, 3, 4}


def test_another_encoder_under_the_same_name_starts_anew(case: Case, tmp_path: Path) -> None:
    """What X_E is decides the trials; the name of its file does not tell."""
    encoder, folder = tmp_path / "encoder.onnx", tmp_path / "a.infoq"
    settings = {**QUICK, "encoder": str(encoder)}
    saved(mlp(classes=3), encoder)
    with pytest.raises(KeyboardInterrupt):
        analyze(case.model, case.calib, output=folder, reporter=Listener(7), **settings)
    saved(mlp(classes=3, seed=1), encoder)
    listener = Listener()
    analyze(case.model, case.calib, output=folder, reporter=listener, **settings)
    assert not any("going on" in note for note in listener.notes)
    fresh = analyze(case.model, case.calib, output=tmp_path / "fresh.infoq", **settings)
    assert content(folder, *NAMES) == content(fresh, *NAMES)


def test_trials_seen_by_other_candidates_are_not_mixed_in(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal may be left by another version of the code."""
    for module in ("infoq_onnx.pipeline.looking", "infoq_onnx.sensitivity.trials"):
        monkeypatch.setattr(f"{module}.candidates", lambda graph, network: candidates(graph, network)[-1:])
    with pytest.raises(KeyboardInterrupt):
        analyze(case.model, case.calib, output=tmp_path / "a.infoq", reporter=Listener(7), **QUICK)
    monkeypatch.undo()
    folder = analyze(case.model, case.calib, output=tmp_path / "a.infoq", **QUICK)
    assert content(folder, *NAMES) == content(case.analysis, *NAMES)


@pytest.mark.parametrize("workers", [1, 2])
def test_another_provider_with_the_same_kernels_finds_the_same(workers: int, case: Case, tmp_path: Path) -> None:
    """The one that calls Azure has no operators of its own, so the CPU's do the work."""
    if "AzureExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime has one provider only")
    folder = analyze(case.model, case.calib, output=tmp_path / "a.infoq", provider="Azure", workers=workers, **QUICK)
    found, before = read_analysis(folder), read_analysis(case.analysis)
    assert (found.settings.provider, before.settings.provider) == ("azure", "cpu")
    assert (found.trials, found.candidates) == (before.trials, before.candidates)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("workers", [1, 2])
def test_memory_changes_nothing(workers: int, rounding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are read again for each pass, activations go to files, and processes are as many as have room.

    Trials run on three blocks of images.
    """
    monkeypatch.setattr(blocks, "FIRST", 8)
    monkeypatch.setattr(trying, "TOLERATED", -1.0)
    model, folder = saved(residual_convnet(size=8), tmp_path / "float.onnx"), tmp_path / "images"
    folder.mkdir()
    for index, pixels in enumerate(images((8, 8, 3), 24)):
        Image.fromarray((60 * pixels + 120).clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    settings = {**QUICK, "trial_rounding": rounding, "preprocessing": "cifar10"}
    before = analyze(model, folder, output=tmp_path / "a.infoq", **settings)
    assert read_analysis(before).tried_images == 24
    assert sum(name.startswith("journal") for name in files_of(before)) == 3
    monkeypatch.setattr("infoq_onnx.execute.resources._SHARE", 2**40)
    after = analyze(model, folder, output=tmp_path / "b.infoq", memory="64GiB", workers=workers, **settings)
    assert content(after, *files_of(before)) == content(before, *files_of(before))
    assert files_of(after) == files_of(before)


def test_where_the_model_lies_is_all_that_moving_it_changes(case: Case, tmp_path: Path) -> None:
    model = Path(shutil.copy(case.model, tmp_path / "other name.onnx"))
    moved = read_analysis(analyze(model, case.calib, output=tmp_path / "a.infoq", **QUICK))
    before = read_analysis(case.analysis)
    assert moved.model.path == str(model)
    assert (moved.trials, moved.candidates) == (before.trials, before.candidates)
