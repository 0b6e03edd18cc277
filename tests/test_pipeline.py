"""The verbs, end to end: what they write, that they write it twice alike, and how they refuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from infoq_onnx import pipeline
from infoq_onnx.allocation.decide import budget_label
from infoq_onnx.analyses import find_analysis, read_analysis
from infoq_onnx.demo import demo_calibration_path, demo_model_path, demo_test_path
from infoq_onnx.errors import (
    AnalysisError,
    DataError,
    InfeasibleBudgetError,
    InfoQError,
    ModelError,
    OutputError,
    SettingsError,
    VerificationError,
)
from infoq_onnx.evaluation import PREPROCESSING_KEY
from infoq_onnx.files import sha256_of
from infoq_onnx.graph.session import open_session
from infoq_onnx.pipeline import allocate, analyze, compress, evaluate, inspect
from infoq_onnx.schema import Allocation, Bound, from_json
from infoq_onnx.simulate.batching import batch_size, logits_of
from tests.networks import SMALL, mlp, residual_convnet
from tests.prepared import dataset_of, images, is_one_line, searched

QUICK: dict[str, Any] = {"projections": 3, "bits": (2, 4, 8)}


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


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Three Gemm layers; nothing here may be changed."""
    folder = tmp_path_factory.mktemp("mlp")
    model, calib = saved(mlp(), folder / "mlp.onnx"), data_for(mlp(), folder / "calib.npz")
    return Case(model, calib, analyze(model, calib, output=folder / "mlp.infoq", **QUICK))


@pytest.fixture
def copied(case: Case, tmp_path: Path) -> Path:
    """A copy of the analysis that may be changed."""
    return Path(shutil.copytree(case.analysis, tmp_path / "copy.infoq"))


class Listener:
    """Collects what is reported; raises at a trial."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.notes, self.warnings = stop_at, list[str](), list[str]()
        self.stages: dict[str, list[tuple[int, int]]] = {}

    def progress(self, stage: str, detail: str, done: int, total: int) -> None:  # noqa: ARG002
        if stage == "trials" and self.stop_at is not None and done >= self.stop_at:
            raise KeyboardInterrupt
        self.stages.setdefault(stage, []).append((done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def content(folder: Path, *names: str) -> list[bytes]:
    return [(folder / name).read_bytes() for name in names]


def refused(kind: type[InfoQError], *parts: str, call: Callable[[], object]) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert is_one_line(caught.value, *parts)


# ---------------------------------------------------------------------------------------------------------- all the way


@pytest.mark.parametrize(
    ("name", "criterion"),
    [("residual", "infoq"), ("depthwise", "kl"), ("concat", "kl"), ("attention", "infoq"), ("fixed batch", "infoq")],
)
def test_all_the_way(name: str, criterion: str, tmp_path: Path) -> None:
    model = saved(SMALL[name](), tmp_path / "float.onnx")
    calib = data_for(SMALL[name](), tmp_path / "calib.npz")
    folder = analyze(model, calib, output=tmp_path / "a.infoq", **QUICK)
    analysis = read_analysis(folder)
    assert analysis.network == inspect(model)
    assert analysis.model.sha256 == sha256_of(model)
    assert analysis.calibration.labels == "true"
    assert set(analysis.scores) == {"infoq", "kl"}

    done = allocate(folder, bounds={"bitops": "uniform:4/4"}, criterion=criterion, output=tmp_path / "small.onnx")
    assert done.allocation.costs.bitops <= done.allocation.bounds[0].limit
    assert done.allocation.optimal
    assert set(done.allocation.weight_bits.values()) | set(done.allocation.activation_bits.values()) <= {2, 4, 8}
    assert done.verification.agreement >= 0.97
    assert done.verification.relative_rms < 0.01

    found = evaluate(done.model_path, calib, against=model)
    assert found.images == 32
    assert found.file_bytes == done.file_bytes
    assert found.reference_top1 == analysis.model.float_top1
    assert found.agreement is not None


def test_the_demo_model_keeps_its_accuracy_at_half_the_bits(tmp_path: Path) -> None:
    with demo_model_path() as model, demo_calibration_path() as calib, demo_test_path() as test:
        folder = analyze(model, calib, samples=100, projections=4, bits=(4, 6, 8), output=tmp_path / "demo.infoq")
        analysis = read_analysis(folder)
        done = allocate(folder, bounds={"avg_weight_bits": "6", "avg_act_bits": "6"}, output=tmp_path / "demo.onnx")
        found = evaluate(done.model_path, test, against=model)
    assert analysis.calibration.samples == 100
    assert analysis.model.float_top1 is not None
    assert analysis.model.float_top1 > 0.95
    assert done.allocation.costs.avg_weight_bits <= 6
    assert done.allocation.costs.avg_act_bits <= 6
    assert found.top1 is not None
    assert found.top1 > 0.9
    # one of eight to thirty-two bits a weight, with the framing of a small file
    assert done.allocation.costs.weight_bytes < 6294


def test_the_allocation_lies_beside_the_model_and_in_it(case: Case, tmp_path: Path) -> None:
    done = allocate(case.analysis, bounds={"compression": "8"}, output=tmp_path / "m.onnx")
    assert done.allocation_path == tmp_path / "m.json"
    text = done.allocation_path.read_text(encoding="utf-8")
    assert from_json(Allocation, text) == done.allocation
    metadata = {entry.key: entry.value for entry in onnx.load(done.model_path).metadata_props}
    assert metadata["infoq_onnx.allocation"] == text
    assert metadata["infoq_onnx.budget"] == "compression-8"
    assert PREPROCESSING_KEY in metadata
    assert done.allocation.model_sha256 == sha256_of(case.model)
    assert done.allocation.analysis_sha256 == sha256_of(case.analysis / "analysis.json")
    assert done.allocation.costs.compression >= 8
    assert done.before.compression == 1.0
    assert done.float_file_bytes == case.model.stat().st_size


def test_compress_is_both_in_one(tmp_path: Path) -> None:
    model, calib = saved(mlp(), tmp_path / "mlp.onnx"), data_for(mlp(), tmp_path / "calib.npz", 16)
    done = compress(
        model,
        calib,
        bounds={"size": "uniform:4"},
        samples=16,
        analysis=tmp_path / "a.infoq",
        output=tmp_path / "out.onnx",
    )
    assert done.model_path.is_file()
    assert done.allocation.costs.weight_bytes <= done.allocation.bounds[0].limit
    assert read_analysis(tmp_path / "a.infoq").settings.bits == (2, 3, 4, 5, 6, 7, 8)


def test_default_names_are_in_the_working_folder(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert analyze(case.model, case.calib, **QUICK) == Path("mlp.infoq")
    done = allocate(bounds={"compression": "uniform:4/4"}, weight_only=True)
    assert done.model_path == Path("mlp.compression-uniform-4-4-weight_only.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mlp.compression-uniform-4-4-weight_only.json",
        "mlp.compression-uniform-4-4-weight_only.onnx",
        "mlp.infoq",
    ]


def test_without_labels_predictions_stand_in(tmp_path: Path) -> None:
    model = saved(mlp(), tmp_path / "mlp.onnx")
    calib = data_for(mlp(), tmp_path / "calib.npz", labelled=False)
    listener = Listener()
    analysis = read_analysis(analyze(model, calib, output=tmp_path / "a.infoq", reporter=listener, **QUICK))
    assert analysis.calibration.labels == "predicted"
    assert (analysis.model.float_top1, analysis.model.baseline_top1) == (None, None)
    assert any("without labels" in note for note in listener.notes)
    # the baseline predicts nearly what the float model does
    assert all(abs(trial.top1_drop) <= 1 for trial in analysis.trials)
    assert evaluate(model, calib).top1 is None


def test_progress_and_remarks(case: Case, tmp_path: Path) -> None:
    listener = Listener()
    analyze(case.model, case.calib, output=tmp_path / "a.infoq", reporter=listener, **QUICK)
    for stage, total in (("ranges", 2 * 32), ("trials", 6 * 2)):
        calls = listener.stages[stage]
        assert calls[-1] == (total, total)
        assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert any("93.75 %" in note for note in listener.notes)
    assert listener.warnings == []


def test_an_accuracy_near_chance_is_told(case: Case, tmp_path: Path) -> None:
    with np.load(case.calib) as arrays:
        np.savez(tmp_path / "calib.npz", x=arrays["x"], y=np.random.default_rng(0).integers(0, 4, 32))
    listener = Listener()
    analyze(case.model, tmp_path / "calib.npz", output=tmp_path / "a.infoq", reporter=listener, **QUICK)
    assert any("near chance" in warning for warning in listener.warnings)


def test_without_information_only_criteria_that_need_none_are_left(tmp_path: Path) -> None:
    """A network whose weights are drawn gives nearly every image the same class."""
    model = saved(SMALL["concat"](), tmp_path / "float.onnx")
    calib = data_for(SMALL["concat"](), tmp_path / "calib.npz", 16)
    listener = Listener()
    folder = analyze(model, calib, output=tmp_path / "a.infoq", reporter=listener, **QUICK)
    assert read_analysis(folder).scores["infoq"] == ()
    assert any("--criterion" in warning for warning in listener.warnings)
    budget = {"bitops": "uniform:4/4"}
    refused(SettingsError, "infoq", "kl", call=lambda: allocate(folder, bounds=budget, output=tmp_path / "m.onnx"))
    assert allocate(folder, bounds=budget, criterion="kl", output=tmp_path / "m.onnx").allocation.optimal


def test_features_of_the_model_as_encoder(case: Case, tmp_path: Path) -> None:
    analysis = read_analysis(analyze(case.model, case.calib, encoder="self", output=tmp_path / "a.infoq", **QUICK))
    assert analysis.settings.encoder == "self"
    other = read_analysis(case.analysis)
    assert [trial.kl for trial in analysis.trials] == [trial.kl for trial in other.trials]
    assert analysis.observers != other.observers


# ------------------------------------------------------------------------------------------------------- the same bytes


NAMES = ("analysis.json", "ranges.npz", "journal.jsonl", "SHA256SUMS")


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


def test_a_killed_process_ends_with_the_same_bytes(case: Case, tmp_path: Path) -> None:
    """Killed for good between two trials, with a torn line and a lock left behind."""
    folder = tmp_path / "a.infoq"
    code = (
        "import os, sys\n"
        "from infoq_onnx.pipeline import analyze\n"
        "class Killer:\n"
        "    def note(self, text): pass\n"
        "    def warn(self, text): pass\n"
        "    def progress(self, stage, detail, done, total):\n"
        "        if stage == 'trials' and done >= 5: os.kill(os.getpid(), 9)\n"
        f"analyze(sys.argv[1], sys.argv[2], output=sys.argv[3], reporter=Killer(), **{QUICK!r})"
    )
    arguments = [str(case.model), str(case.calib), str(folder)]
    killed = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert (folder / ".lock").exists()
    with (folder / "journal.jsonl").open("a") as journal:
        journal.write('{"stage": "select", "trial": {"unit": "fc3", "ki')
    analyze(case.model, case.calib, output=folder, **QUICK)
    assert content(folder, *NAMES) == content(case.analysis, *NAMES)


def test_a_second_run_changes_nothing_and_tries_nothing(
    case: Case, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infoq_onnx.sensitivity.sweep._try", lambda *_: pytest.fail("a finished trial was run again"))
    analyze(case.model, case.calib, output=copied, **QUICK)
    assert content(copied, *NAMES) == content(case.analysis, *NAMES)


@pytest.mark.parametrize("change", [{"seed": 1}, {"projections": 4}, {"bits": (2, 3, 8)}, {"samples": 31}])
def test_other_settings_start_anew(change: dict[str, Any], case: Case, copied: Path, tmp_path: Path) -> None:
    settings = {**QUICK, **change}
    listener = Listener()
    analyze(case.model, case.calib, output=copied, reporter=listener, **settings)
    assert not any("going on" in note for note in listener.notes)
    fresh = analyze(case.model, case.calib, output=tmp_path / "fresh.infoq", **settings)
    assert content(copied, *NAMES) == content(fresh, *NAMES)
    assert content(copied, "analysis.json") != content(case.analysis, "analysis.json")


def test_where_the_model_lies_is_all_that_moving_it_changes(case: Case, tmp_path: Path) -> None:
    model = Path(shutil.copy(case.model, tmp_path / "other name.onnx"))
    moved = read_analysis(analyze(model, case.calib, output=tmp_path / "a.infoq", **QUICK))
    before = read_analysis(case.analysis)
    assert moved.model.path == str(model)
    assert (moved.trials, moved.observers, moved.scores) == (before.trials, before.observers, before.scores)


# -------------------------------------------------------------------------------------------------------------- choices


def test_uniform(case: Case, tmp_path: Path) -> None:
    done = allocate(case.analysis, uniform_bits=(2, 4), output=tmp_path / "m.onnx")
    assert set(done.allocation.weight_bits.values()) == {2}
    assert set(done.allocation.activation_bits.values()) == {4}
    assert (done.allocation.criterion, done.allocation.optimal) == ("uniform", False)
    weights = allocate(case.analysis, uniform_bits=(2, 4), weight_only=True, output=tmp_path / "w.onnx").allocation
    assert set(weights.weight_bits.values()) == {2}
    assert set(weights.activation_bits.values()) == {8}


def test_weight_only(case: Case, tmp_path: Path) -> None:
    done = allocate(case.analysis, bounds={"compression": "10"}, weight_only=True, output=tmp_path / "m.onnx")
    assert set(done.allocation.activation_bits.values()) == {8}
    assert set(done.allocation.weight_bits.values()) != {8}


def test_pins(case: Case, tmp_path: Path) -> None:
    pins = ("first=8/8", "fc2=2", "last=/4")
    done = allocate(case.analysis, bounds={"avg_weight_bits": "6"}, pins=pins, output=tmp_path / "m.onnx")
    assert done.allocation.pins == pins
    assert done.allocation.weight_bits["fc1"] == 8
    assert done.allocation.activation_bits["x"] == 8
    assert done.allocation.weight_bits["fc2"] == 2
    assert done.allocation.activation_bits["relu2_out"] == 4


def test_bits_to_choose_among(case: Case, tmp_path: Path) -> None:
    done = allocate(case.analysis, bounds={"compression": "4"}, bits=(4, 8), output=tmp_path / "m.onnx")
    assert {*done.allocation.weight_bits.values(), *done.allocation.activation_bits.values()} <= {4, 8}


def test_criteria_and_alpha_are_recorded(case: Case, tmp_path: Path) -> None:
    done = allocate(
        case.analysis, bounds={"bitops": "uniform:4/4"}, criterion="kl", alpha=0.5, output=tmp_path / "m.onnx"
    )
    assert (done.allocation.criterion, done.allocation.alpha) == ("kl", 0.5)
    scores = {(score.unit, score.bits): score.value for score in read_analysis(case.analysis).scores["kl"]}
    bits = done.allocation
    total = sum(scores.get((unit, width), 0.0) for unit, width in bits.weight_bits.items())
    total += 0.5 * sum(scores.get((unit, width), 0.0) for unit, width in bits.activation_bits.items())
    assert bits.score == pytest.approx(total, rel=0.05)


@pytest.mark.parametrize(
    ("bounds", "uniform_bits", "weight_only", "label"),
    [
        ((), (4, 3), False, "uniform-4-3"),
        ((), (4, 3), True, "uniform-4-8"),
        ((Bound("bitops", 1.0, "23.04G"),), None, False, "bitops-23.04G"),
        ((Bound("bitops", 1.0, "uniform:3/3"),), None, True, "bitops-uniform-3-3-weight_only"),
        ((Bound("size", 1.0, " 1.5 MiB"), Bound("compression", 1.0, "8x")), None, False, "size-1.5-MiB-compression-8x"),
    ],
)
def test_budgets_as_names(
    bounds: tuple[Bound, ...], uniform_bits: tuple[int, int] | None, weight_only: bool, label: str
) -> None:
    assert budget_label(bounds, uniform_bits, weight_only) == label


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"bits": (2, 9)}, "9"),
        ({"bits": (8,)}, "--bits"),
        ({"projections": 1}, "--projections"),
        ({"neighbours": 0}, "--neighbours"),
        ({"neighbours": 16}, "--neighbours"),
        ({"threshold": 1.5}, "--threshold"),
        ({"samples": 3}, "--samples"),
        ({"encoder": "vgg"}, "vgg"),
        ({"seed": -1}, "-1"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], part: str, case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "a.infoq"
    refused(SettingsError, part, call=lambda: analyze(case.model, case.calib, output=folder, **{**QUICK, **settings}))
    assert list(tmp_path.iterdir()) == []


def test_too_few_images(tmp_path: Path) -> None:
    model, calib = saved(mlp(), tmp_path / "mlp.onnx"), data_for(mlp(), tmp_path / "calib.npz", 15)
    refused(DataError, "calib.npz", "15", call=lambda: analyze(model, calib, output=tmp_path / "a.infoq", **QUICK))


def test_files_that_are_not_there(case: Case, tmp_path: Path) -> None:
    output = tmp_path / "a.infoq"
    refused(ModelError, "gone.onnx", call=lambda: analyze(tmp_path / "gone.onnx", case.calib, output=output))
    refused(DataError, "gone.npz", call=lambda: analyze(case.model, tmp_path / "gone.npz", output=output))
    refused(ModelError, "gone.onnx", call=lambda: inspect(tmp_path / "gone.onnx"))
    refused(ModelError, "gone.onnx", call=lambda: evaluate(tmp_path / "gone.onnx", case.calib))
    refused(DataError, "gone.npz", call=lambda: evaluate(case.model, tmp_path / "gone.npz"))
    refused(OutputError, "gone", call=lambda: analyze(case.model, case.calib, output=tmp_path / "gone" / "a", **QUICK))
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_computes_no_numbers(tmp_path: Path) -> None:
    model, calib = saved(mlp(), tmp_path / "mlp.onnx"), tmp_path / "calib.npz"
    np.savez(calib, x=np.full((32, 12), 1e38, np.float32))
    refused(ModelError, "mlp.onnx", call=lambda: analyze(model, calib, output=tmp_path / "a.infoq", **QUICK))


def test_a_folder_in_use_by_another_process(case: Case, copied: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from infoq_onnx.sensitivity.journal import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(copied)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refused(
            AnalysisError,
            str(copied),
            f"process {holder.pid}",
            call=lambda: analyze(case.model, case.calib, output=copied, **QUICK),
        )
        holder.communicate()
    assert content(copied, *NAMES) == content(case.analysis, *NAMES)


@pytest.mark.parametrize(
    ("options", "kind", "parts"),
    [
        ({}, SettingsError, ["--uniform", "--bitops"]),
        ({"bounds": {"bitops": "1G"}, "uniform_bits": (4, 4)}, SettingsError, ["--uniform", "--bitops"]),
        ({"uniform_bits": (4, 4), "pins": ("fc1=8",)}, SettingsError, ["--uniform", "--pin"]),
        ({"uniform_bits": (4, 3)}, SettingsError, ["--uniform", "3", "2, 4, 8"]),
        ({"bounds": {"bitops": "uniform:4/4"}, "criterion": "hawq"}, SettingsError, ["hawq", "infoq, kl"]),
        ({"bounds": {"bitops": "uniform:4/4"}, "bits": (3, 8)}, SettingsError, ["--bits", "3", "2, 4, 8"]),
        ({"bounds": {"bitops": "a lot"}}, SettingsError, ["--bitops", "a lot"]),
        ({"bounds": {"compression": "8"}, "pins": ("fc9=8",)}, SettingsError, ["fc9"]),
        ({"bounds": {"compression": "8"}, "storage": "tape"}, SettingsError, ["tape"]),
        ({"bounds": {"compression": "8"}, "rounding": "up"}, SettingsError, ["up"]),
        ({"bounds": {"compression": "17"}}, InfeasibleBudgetError, ["16"]),
    ],
)
def test_choices_that_make_no_sense(
    options: dict[str, Any], kind: type[InfoQError], parts: list[str], case: Case, tmp_path: Path
) -> None:
    refused(kind, *parts, call=lambda: allocate(case.analysis, output=tmp_path / "m.onnx", **options))
    assert list(tmp_path.iterdir()) == []


def test_names_of_results(case: Case, tmp_path: Path) -> None:
    before = case.model.read_bytes()
    for output, kind in (
        (tmp_path / "m.pb", SettingsError),
        (case.model, SettingsError),
        (tmp_path / "gone" / "m.onnx", OutputError),
    ):
        options = {"uniform_bits": (8, 8), "output": output}
        refused(kind, output.name, call=lambda options=options: allocate(case.analysis, **options))
    assert case.model.read_bytes() == before
    assert not case.model.with_suffix(".json").exists()
    assert list(tmp_path.iterdir()) == []


def test_the_model_has_changed_or_gone(tmp_path: Path) -> None:
    model, calib = saved(mlp(), tmp_path / "mlp.onnx"), data_for(mlp(), tmp_path / "calib.npz")
    folder = analyze(model, calib, output=tmp_path / "a.infoq", **QUICK)

    def again(**options: Any) -> object:
        return allocate(folder, uniform_bits=(4, 4), output=tmp_path / "m.onnx", **options)

    saved(mlp(seed=1), model)
    refused(AnalysisError, "mlp.onnx", sha256_of(model)[:12], call=again)
    model.unlink()
    refused(ModelError, "mlp.onnx", "--model", call=again)
    assert not (tmp_path / "m.onnx").exists()
    moved = saved(mlp(), tmp_path / "moved.onnx")
    again(model=moved)

    calib.rename(tmp_path / "moved.npz")
    refused(DataError, "calib.npz", "--calib", call=lambda: again(model=moved))
    again(model=moved, calib=tmp_path / "moved.npz")
    refused(AnalysisError, "fixed.onnx", call=lambda: again(model=saved(mlp(batch=1), tmp_path / "fixed.onnx")))


def test_analyses_that_cannot_be_read(case: Case, copied: Path, tmp_path: Path) -> None:
    refused(AnalysisError, "nowhere", "analyze", call=lambda: read_analysis(tmp_path / "nowhere"))
    path = copied / "analysis.json"
    text = path.read_text(encoding="utf-8")
    for damaged in (
        text[: len(text) // 2],
        "",
        text.replace('"seed"', '"sead"', 1),
        text.replace('"seed": 0', '"seed": "no"', 1),
        "[" * 100_000,
    ):
        path.write_text(damaged, encoding="utf-8")
        refused(AnalysisError, "analysis.json", "analyze again", call=lambda: read_analysis(copied))
    content = json.loads(text)
    path.write_text(json.dumps({**content, "schema": 999}), encoding="utf-8")
    refused(AnalysisError, "999", "analyze again", call=lambda: read_analysis(copied))
    path.write_text(text.replace('"seed": 0', '"seed": 1', 1), encoding="utf-8")
    refused(AnalysisError, "analysis.json", "was changed", call=lambda: read_analysis(copied))
    path.write_text(text, encoding="utf-8")
    assert read_analysis(copied) == read_analysis(case.analysis)
    (copied / "ranges.npz").write_bytes(b"")
    refused(
        AnalysisError,
        "ranges.npz",
        call=lambda: allocate(copied, uniform_bits=(4, 4), output=tmp_path / "m.onnx"),
    )
    (copied / "SHA256SUMS").unlink()
    refused(AnalysisError, "SHA256SUMS", "analyze again", call=lambda: read_analysis(copied))


def test_nothing_that_allocate_did_not_write_is_replaced(case: Case, copied: Path, tmp_path: Path) -> None:
    def wanted(path: Path) -> None:
        allocate(copied, uniform_bits=(4, 4), output=path)

    (tmp_path / "mine.json").write_text('{"important": true}')
    refused(SettingsError, "mine.json", call=lambda: wanted(tmp_path / "mine.onnx"))
    refused(SettingsError, "analysis.json", call=lambda: wanted(copied / "analysis.onnx"))
    shutil.copy(case.model, tmp_path / "copy.onnx")
    refused(SettingsError, "float model", call=lambda: wanted(tmp_path / "copy.onnx"))
    wanted(tmp_path / "ours.onnx")
    wanted(tmp_path / "ours.onnx")


def test_other_samples_are_not_taken_for_those_that_moved(case: Case, tmp_path: Path) -> None:
    other = data_for(SMALL["mlp"](), tmp_path / "other.npz", count=40)
    refused(
        AnalysisError,
        "other.npz",
        "other samples",
        call=lambda: allocate(case.analysis, uniform_bits=(4, 4), calib=other, output=tmp_path / "m.onnx"),
    )


def test_the_newest_finished_analysis_is_found(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(AnalysisError, str(tmp_path), call=lambda: find_analysis(tmp_path))
    for age, name in enumerate(("new.infoq", "old.infoq")):
        folder = Path(shutil.copytree(case.analysis, tmp_path / name))
        os.utime(folder / "analysis.json", (1e9 - age, 1e9 - age))
    (tmp_path / "unfinished.infoq").mkdir()
    (tmp_path / "unfinished.infoq" / "journal.jsonl").touch()
    assert find_analysis(tmp_path) == tmp_path / "new.infoq"
    monkeypatch.chdir(tmp_path)
    assert find_analysis() == Path("new.infoq")


@pytest.mark.parametrize("old", [False, True])
def test_a_model_that_fails_its_check_is_not_left(
    old: bool, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:
        allocate(case.analysis, uniform_bits=(2, 2), output=tmp_path / "m.onnx")
        before = content(tmp_path, "m.json", "m.onnx")

    def fail(path: Path, *_: object) -> None:
        onnx.load(path)
        raise VerificationError("m.onnx disagrees")

    monkeypatch.setattr(pipeline, "verify", fail)
    refused(
        VerificationError,
        "m.onnx",
        call=lambda: allocate(case.analysis, uniform_bits=(4, 4), output=tmp_path / "m.onnx"),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == (["m.json", "m.onnx"] if old else [])
    assert not old or content(tmp_path, "m.json", "m.onnx") == before


def test_models_with_other_inputs_are_not_compared(case: Case, tmp_path: Path) -> None:
    other = saved(residual_convnet(), tmp_path / "other.onnx")
    refused(ModelError, "other.onnx", "mlp.onnx", call=lambda: evaluate(case.model, case.calib, against=other))
