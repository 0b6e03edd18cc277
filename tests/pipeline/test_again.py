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

from infoq_onnx.analyses import read_analysis
from infoq_onnx.errors import (
    AnalysisError,
)
from infoq_onnx.pipeline import allocate, analyze
from infoq_onnx.sensitivity.observers import candidates
from tests.networks import SMALL, mlp, residual_convnet
from tests.pipeline.cases import NAMES, QUICK, Case, Listener, content, data_for, refused, saved
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
    assert not (folder / "analysis.json").exists()
    refused(AnalysisError, "not finished", call=lambda: read_analysis(folder))
    listener = Listener()
    analyze(case.model, case.calib, output=folder, reporter=listener, **QUICK)
    assert content(folder, *NAMES) == content(case.analysis, *NAMES)
    assert any("going on" in note for note in listener.notes) == (stop > 0)
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)


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
    with (folder / "journal.jsonl").open("a") as journal:
        journal.write('{"stage": "select", "trial": {"unit": "fc3", "ki')
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
        (copied / name).write_bytes(b"half")
    analyze(case.model, case.calib, output=copied, **QUICK)
    assert content(copied, *NAMES) == content(case.analysis, *NAMES)
    assert sorted(path.name for path in copied.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("change", [{"seed": 1}, {"projections": 4}, {"bits": (2, 3, 8)}, {"samples": 31}])
def test_other_settings_start_anew(change: dict[str, Any], case: Case, copied: Path, tmp_path: Path) -> None:
    settings = {**QUICK, **change}
    listener = Listener()
    analyze(case.model, case.calib, output=copied, reporter=listener, **settings)
    assert not any("going on" in note for note in listener.notes)
    fresh = analyze(case.model, case.calib, output=tmp_path / "fresh.infoq", **settings)
    assert content(copied, *NAMES) == content(fresh, *NAMES)
    assert content(copied, "analysis.json") != content(case.analysis, "analysis.json")


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
    for module in ("infoq_onnx.pipeline.analyzing", "infoq_onnx.sensitivity.trials"):
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
    assert (found.trials, found.observers, found.scores) == (before.trials, before.observers, before.scores)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("workers", [1, 2])
def test_memory_changes_nothing(workers: int, rounding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are read again for each pass, activations go to files, and processes are as many as have room."""
    model, folder = saved(residual_convnet(size=8), tmp_path / "float.onnx"), tmp_path / "images"
    folder.mkdir()
    for index, pixels in enumerate(images((8, 8, 3), 24)):
        Image.fromarray((60 * pixels + 120).clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    settings = {**QUICK, "trial_rounding": rounding, "preprocessing": "cifar10"}
    names = (*NAMES, *(["codes.npz"] if rounding == "gptq" else []))
    before = content(analyze(model, folder, output=tmp_path / "a.infoq", **settings), *names)
    monkeypatch.setattr("infoq_onnx.execute.resources._SHARE", 2**40)
    after = analyze(model, folder, output=tmp_path / "b.infoq", memory="64GiB", workers=workers, **settings)
    assert content(after, *names) == before
    assert sorted(path.name for path in after.iterdir()) == sorted(names)


def test_where_the_model_lies_is_all_that_moving_it_changes(case: Case, tmp_path: Path) -> None:
    model = Path(shutil.copy(case.model, tmp_path / "other name.onnx"))
    moved = read_analysis(analyze(model, case.calib, output=tmp_path / "a.infoq", **QUICK))
    before = read_analysis(case.analysis)
    assert moved.model.path == str(model)
    assert (moved.trials, moved.observers, moved.scores) == (before.trials, before.observers, before.scores)
