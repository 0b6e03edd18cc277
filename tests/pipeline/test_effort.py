"""Efforts: which trials they run, on which images, and how they continue one another."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infoq_onnx.analyses import current, read_analysis, read_analyzed
from infoq_onnx.errors import SettingsError
from infoq_onnx.files import write_text
from infoq_onnx.pipeline import allocate, analyze, trying
from infoq_onnx.preparation import prepare
from infoq_onnx.quantize.codes import load_codes
from infoq_onnx.report import tables
from infoq_onnx.schema import Trial, to_json
from infoq_onnx.sensitivity import blocks
from infoq_onnx.sensitivity.trials import Baseline, Bench, Task
from tests.networks import mlp, residual_convnet
from tests.pipeline.cases import CODES, NAMES, QUICK, Listener, content, data_for, files_of, refused, saved

SETTINGS: dict[str, Any] = {**QUICK, "bits": (2, 3, 4, 5, 6, 7, 8)}
IMAGES = 200
"""Three blocks: 64, 64 and 72 images."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("effort")
    return saved(mlp(), folder / "mlp.onnx"), data_for(mlp(), folder / "calib.npz", IMAGES)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple[int, ...]]]:
    """Number of images and bit-widths of each task that was run."""
    seen: list[tuple[int, tuple[int, ...]]] = []
    trials = Bench.trials

    def noted(self: Bench, task: Task, baseline: Baseline) -> list[Trial]:
        seen.append((len(self.problem.dataset), task.bits))
        return trials(self, task, baseline)

    monkeypatch.setattr("infoq_onnx.sensitivity.trials.Bench.trials", noted)
    return seen


def settled(monkeypatch: pytest.MonkeyPatch, after: int) -> list[int]:
    """Let the stop rule stop after some blocks; the number of blocks so far at each time it was asked."""
    asked: list[int] = []

    def regret(*_: object) -> float:
        asked.append(len(asked) + 1)
        return 0.0 if len(asked) >= after else 1.0

    monkeypatch.setattr(trying, "regret", regret)
    return asked


def test_quick_tries_low_widths_on_one_block(
    files: tuple[Path, Path], tried: list[tuple[int, tuple[int, ...]]], tmp_path: Path
) -> None:
    folder = analyze(*files, output=tmp_path / "a.infoq", effort="quick", **SETTINGS)
    assert {images for images, _ in tried} == {64}
    assert {b for _, bits in tried for b in bits} == {2, 3, 4, 6}
    found = read_analyzed(folder)
    assert found.analysis.tried_images == 64
    assert found.analysis.calibration.samples == found.analysis.settings.samples == IMAGES
    assert found.analysis.settings.bits == SETTINGS["bits"]
    # pooled criteria have scores at all widths, others at those that were tried
    widths = {name: {score.bits for score in table.scores} for name, table in found.scores.items()}
    assert widths["kl-pooled"] == widths["infoq-pooled"] == {2, 3, 4, 5, 6, 7}
    assert widths["kl"] == widths["infoq"] == {2, 3, 4, 6}
    # … and are the default of such an analysis, and what is shown of it
    chosen = allocate(folder, bounds={"compression": "6"}, weight_only=True, output=tmp_path / "m.onnx")
    assert chosen.allocation.criterion == "kl-pooled"
    titles = " ".join(str(table.title) for table in tables.analysis(found))
    assert "kl-pooled" in titles
    assert "scores by kl:" not in titles
    assert "goes by kl-pooled" in tables.criterion_line(found)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_normal_stops_when_the_choice_is_settled(
    blocks: int,
    files: tuple[Path, Path],
    tried: list[tuple[int, tuple[int, ...]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = settled(monkeypatch, blocks)
    listener = Listener()
    folder = analyze(*files, output=tmp_path / "a.infoq", effort="normal", reporter=listener, **SETTINGS)
    assert list(dict.fromkeys(images for images, _ in tried)) == [64, 72][: 1 + (blocks == 3)]
    # after the last block nothing is left to decide
    assert asked == list(range(1, min(blocks, 2) + 1))
    assert read_analysis(folder).tried_images == (64, 128, 200)[blocks - 1]
    assert sum("more images" in note for note in listener.notes) == blocks - 1


def test_a_larger_effort_goes_on_from_a_smaller_one(
    files: tuple[Path, Path],
    tried: list[tuple[int, tuple[int, ...]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks, "ROUNDING", 100)
    settings = {**SETTINGS, "trial_rounding": "gptq"}
    folder = tmp_path / "a.infoq"
    analyze(*files, output=folder, effort="quick", **settings)
    tried.clear()
    settled(monkeypatch, 2)
    analyze(*files, output=folder, effort="normal", **settings)
    # the second block only, as the first is done
    again = len(tried)
    assert {images for images, _ in tried} == {64}
    tried.clear()
    settled(monkeypatch, 2)
    fresh = analyze(*files, output=tmp_path / "b.infoq", effort="normal", **settings)
    assert content(folder, "analysis.json", *NAMES[-4:]) == content(fresh, "analysis.json", *NAMES[-4:])
    assert len(tried) == 2 * again
    # the same or a smaller effort finds everything done
    tried.clear()
    settled(monkeypatch, 2)
    listener = Listener()
    analyze(*files, output=folder, effort="quick", reporter=listener, **settings)
    assert not tried
    assert any("`effort` normal" in note for note in listener.notes)
    assert read_analysis(folder).settings.effort == "normal"
    # full effort measures all images at once, at all widths
    analyze(*files, output=folder, effort="full", **settings)
    assert {images for images, _ in tried} == {IMAGES}
    assert {b for _, bits in tried for b in bits} == {2, 3, 4, 5, 6, 7}
    whole = analyze(*files, output=tmp_path / "c.infoq", effort="full", **settings)
    assert content(folder, *NAMES, CODES) == content(whole, *NAMES, CODES)
    # … in the same measurement, with the same ranges
    assert current(folder).path.name == current(fresh).path.name == current(whole).path.name


def test_mutual_information_is_measured_on_request(
    files: tuple[Path, Path], tried: list[tuple[int, tuple[int, ...]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default criterion does not need it. Measured later, it is as if it had been from the start."""
    settled(monkeypatch, 2)
    settings = {**SETTINGS, "observers": None}
    folder = analyze(*files, output=tmp_path / "a.infoq", **settings)
    found = read_analyzed(folder)
    assert (found.analysis.settings.observers, found.analysis.candidates) == ("none", ())
    assert found.scores.keys() == {"kl", "kl-pooled"}
    assert {bits for _, bits in tried} == {(2, 3, 4, 6)}
    out = {"bounds": {"compression": "6"}, "weight_only": True, "output": tmp_path / "m.onnx"}
    for name in ("infoq", "infoq-pooled"):
        refused(SettingsError, "`observers` selected", call=lambda: allocate(folder, criterion=name, **out))  # noqa: B023
    settled(monkeypatch, 2)
    analyze(*files, output=folder, **SETTINGS)
    settled(monkeypatch, 2)
    fresh = analyze(*files, output=tmp_path / "b.infoq", **SETTINGS)
    assert content(folder, *files_of(fresh)) == content(fresh, *files_of(fresh))
    assert read_analyzed(fresh).scores["kl-pooled"].scores == found.scores["kl-pooled"].scores
    allocate(folder, criterion="infoq", **out)
    # … and is kept
    tried.clear()
    settled(monkeypatch, 2)
    analyze(*files, output=folder, **settings)
    assert not tried
    assert read_analysis(folder).settings.observers == "selected"


def test_below_full_effort_few_images_round_the_widths_that_are_tried(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "ROUNDING", 100)
    with np.load(files[1]) as arrays:
        images = dict(arrays)
    chosen = blocks.rounding_positions(images["y"], IMAGES, "quick", 0)
    assert len(chosen) == 100
    np.savez(tmp_path / "part.npz", **{name: array[chosen] for name, array in images.items()})
    network = prepare(files[0]).network
    settings = {**SETTINGS, "equalize": False, "trial_rounding": "gptq"}
    few = analyze(*files, output=tmp_path / "few.infoq", effort="quick", **settings)
    part = analyze(files[0], tmp_path / "part.npz", output=tmp_path / "part.infoq", effort="quick", **settings)
    whole = analyze(*files, output=tmp_path / "whole.infoq", effort="full", **settings)
    one, other, all_images = (load_codes(current(folder).codes, network) for folder in (few, part, whole))
    assert {tuple(widths) for widths in one.values()} == {(2, 3, 4, 6, 8)}
    for layer, widths in one.items():
        for bits, rounded in widths.items():
            assert (rounded.codes == other[layer][bits].codes).all()
    assert any((one[layer][bits].codes != all_images[layer][bits].codes).any() for layer in one for bits in one[layer])


@pytest.mark.parametrize(("share", "workers"), [(0.1, 1), (0.5, 1), (0.5, 2), (0.9, 2)])
def test_stopped_between_blocks_and_within(
    share: float, workers: int, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks that are done are not run again, and the end has the same bytes."""

    settled(monkeypatch, 9)
    whole = Listener()
    expected = analyze(*files, output=tmp_path / "whole.infoq", effort="normal", reporter=whole, **SETTINGS)
    left = int(share * sum(map(len, whole.stages.values())))

    class Stopper(Listener):
        def progress(self, *_: Any) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise KeyboardInterrupt

    folder = tmp_path / "a.infoq"
    with pytest.raises(KeyboardInterrupt):
        analyze(*files, output=folder, effort="normal", reporter=Stopper(), workers=workers, **SETTINGS)
    analyze(*files, output=folder, effort="normal", workers=workers, **SETTINGS)
    assert files_of(folder) == files_of(expected)
    assert content(folder, *files_of(expected)) == content(expected, *files_of(expected))


def test_added_images_are_further_blocks(
    files: tuple[Path, Path],
    tried: list[tuple[int, tuple[int, ...]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settled(monkeypatch, 9)
    folder = analyze(*files, output=tmp_path / "a.infoq", effort="normal", samples=70, **SETTINGS)
    tried.clear()
    analyze(*files, output=folder, effort="normal", samples=170, **SETTINGS)
    # 100 more images: blocks of 64 and 36
    assert {images for images, _ in tried} == {64, 36}
    found = read_analysis(folder)
    assert (found.tried_images, found.settings.samples) == (170, 170)
    assert [one.samples for one in found.added] == [100]


def test_blocks_have_their_own_groups_where_classes_are_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one image a class in a block, images that the float model finds alike stand in for the classes."""
    settled(monkeypatch, 9)
    model = residual_convnet(size=8)
    path, calib = saved(model, tmp_path / "m.onnx"), data_for(model, tmp_path / "calib.npz", 130)
    seen: list[int] = []
    baseline = Bench.baseline

    def noted(self: Bench) -> Baseline:
        seen.append(len(np.unique(self.problem.targets)))
        return baseline(self)

    monkeypatch.setattr("infoq_onnx.sensitivity.trials.Bench.baseline", noted)
    monkeypatch.setattr(trying, "has_classmates", lambda *_: False)
    folder = analyze(path, calib, output=tmp_path / "a.infoq", effort="normal", **QUICK)
    assert read_analysis(folder).calibration.targets == "groups"
    assert seen == [4, 4]


def test_old_analyses_cannot_be_pooled(files: tuple[Path, Path], tmp_path: Path) -> None:
    """What version 3 wrote has neither local errors nor soft divergences."""
    folder = analyze(*files, output=tmp_path / "a.infoq", samples=32, **QUICK)
    measurement = current(folder)
    old = dataclasses.replace(read_analysis(folder), local_errors=())
    write_text(measurement.analysis, to_json(old))
    measurement.seal()
    settings: dict[str, Any] = {"bounds": {"compression": "6"}, "criterion": "kl-pooled"}
    refused(SettingsError, "older version", call=lambda: allocate(folder, output=tmp_path / "m.onnx", **settings))
    # … and are measured again
    lines = measurement.journal.read_text(encoding="utf-8").splitlines()
    trials = [json.loads(line) for line in lines[1:]]
    for trial in trials:
        del trial["soft_kl"], trial["kl_se"]
    write_text(measurement.journal, "\n".join([lines[0], *map(json.dumps, trials)]) + "\n")
    before = measurement.journal.read_text(encoding="utf-8")
    analyze(*files, output=folder, samples=32, **QUICK)
    assert measurement.journal.read_text(encoding="utf-8") != before
    assert measurement.journal.read_text(encoding="utf-8").splitlines() == lines
    allocate(folder, output=tmp_path / "m.onnx", **settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"observers": None}, "kl-pooled, .*; analyze --effort full measures those too, as published"),
        ({}, "kl-pooled, .*; --criterion infoq takes InfoQ's, of few trials"),
        ({"observers": None, "effort": "full"}, "kl, .*; --criterion infoq takes InfoQ's, as published"),
    ],
)
def test_the_default_criterion_is_explained(
    settings: dict[str, Any], told: str, files: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = analyze(*files, output=tmp_path / "a.infoq", **{**QUICK, "effort": "quick", **settings})
    assert re.fullmatch(f"allocate goes by {told}", tables.criterion_line(read_analyzed(folder)))
