"""How the verbs refuse: one line, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from infoq_onnx.analyses import current, find_analysis, read_analysis
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
from infoq_onnx.files import sha256_of
from infoq_onnx.pipeline import allocate, analyze, emitting, evaluate, inspect, score
from infoq_onnx.quantize.table import load_table, save_table
from tests.networks import SMALL, mlp, residual_convnet
from tests.pipeline.cases import NAMES, QUICK, Case, content, data_for, measured, refused, saved


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"bits": (2, 9)}, "9"),
        ({"bits": (8,)}, "`bits`"),
        ({"projections": 1}, "`projections`"),
        ({"neighbours": 0}, "`neighbours`"),
        ({"neighbours": 16}, "`neighbours`"),
        ({"observers": "few"}, "`observers` 'few': give 'none', 'selected', 'all' or None"),
        ({"samples": 3}, "`samples`"),
        ({"encoder": "vgg"}, "vgg"),
        ({"trial_rounding": "up"}, "`trial_rounding` up: choose nearest or gptq"),
        ({"seed": -1}, "-1"),
        # of the wrong type, as a program may give them
        ({"samples": "64"}, "`samples` '64': give a whole number or None"),
        ({"samples": 64.0}, "`samples` 64.0: give a whole number or None"),
        ({"seed": True}, "`seed` True: give a whole number"),
        ({"bits": "4"}, "`bits` '4': give a list, each of it a whole number"),
        ({"encoder": None}, "`encoder` None: give a text"),
        ({"workers": 0}, "`workers` 0"),
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
        ({}, SettingsError, ["`uniform_bits`", "`bitops`"]),
        ({"bounds": {"bitops": "1G"}, "uniform_bits": (4, 4)}, SettingsError, ["`uniform_bits`", "`bitops`"]),
        (
            {"uniform_bits": (4, 4), "pins": ("fc1=8",)},
            SettingsError,
            ["`uniform_bits` decides all bits: drop `pins`, or give a budget instead of `uniform_bits`"],
        ),
        (
            {"uniform_bits": (4, 4), "pins": ("fc1=8",), "alpha": 2.0, "bits": (2, 4)},
            SettingsError,
            ["drop `pins`, `bits` and `alpha`, or give a budget"],
        ),
        (
            {"uniform_bits": (4, 4), "pins": ("fc1=8",), "bounds": {"bitops": "1G"}},
            SettingsError,
            ["`uniform_bits` decides all bits: drop it, or `bitops` and `pins`"],
        ),
        # an unknown criterion would be refused without uniform bits, too
        ({"uniform_bits": (4, 4), "criterion": "hawq"}, SettingsError, ["decides all bits: drop `criterion`"]),
        # uniform bits themselves come first
        ({"uniform_bits": (3, 3), "pins": ("fc1=8",)}, SettingsError, ["3 was not analysed; choose among 2, 4, 8"]),
        ({"uniform_bits": (3, 3), "criterion": "hawq"}, SettingsError, ["3 was not analysed; choose among 2, 4, 8"]),
        # which leave no room for a pin
        ({"pins": ("fc1=8",)}, SettingsError, ["give one or more bounds", "`compression` 10.66)"]),
        ({"uniform_bits": (4, 3)}, SettingsError, ["`uniform_bits`", "3", "2, 4, 8"]),
        ({"bounds": {"bitops": "uniform:4/4"}, "criterion": "hawq"}, SettingsError, ["hawq", "kl, kl-pooled, infoq"]),
        ({"bounds": {"bitops": "uniform:4/4"}, "bits": (3, 8)}, SettingsError, ["`bits`", "3", "2, 4, 8"]),
        ({"bounds": {"bitops": "a lot"}}, SettingsError, ["`bitops`", "a lot"]),
        ({"bounds": {"compression": "8"}, "pins": ("fc9=8",)}, SettingsError, ["fc9"]),
        ({"bounds": {"compression": "8"}, "storage": "tape"}, SettingsError, ["tape"]),
        ({"bounds": {"compression": "8"}, "rounding": "up"}, SettingsError, ["up"]),
        ({"bounds": {"compression": "17"}}, InfeasibleBudgetError, ["16"]),
        # of the wrong type, as a program may give them
        ({"bounds": "8"}, SettingsError, ["`bounds` '8': give a mapping"]),
        (
            {"bounds": {"compression": None}},
            SettingsError,
            ["`bounds`", "give a mapping of a text to a text or a number"],
        ),
        ({"bounds": {"compression": 8}, "pins": "fc1=8"}, SettingsError, ["`pins` 'fc1=8': give a list"]),
        ({"bounds": {"compression": 8}, "alpha": "1"}, SettingsError, ["`alpha` '1': give a number"]),
        ({"uniform_bits": (4, 4, 4)}, SettingsError, ["`uniform_bits` (4, 4, 4)"]),
    ],
)
def test_choices_that_make_no_sense(
    options: dict[str, Any], kind: type[InfoQError], parts: list[str], case: Case, tmp_path: Path
) -> None:
    refused(kind, *parts, call=lambda: allocate(case.analysis, output=tmp_path / "m.onnx", **options))
    assert list(tmp_path.iterdir()) == []


def test_a_budget_that_an_analysis_of_weights_alone_cannot_meet(case: Case, tmp_path: Path) -> None:
    folder = analyze(case.model, case.calib, output=tmp_path / "a.infoq", weight_only=True, **QUICK)
    options = {"bounds": {"avg_act_bits": 4}, "rounding": "nearest", "output": tmp_path / "m.onnx"}
    told = "; loosen the budget or run analyze without `weight_only`"
    refused(InfeasibleBudgetError, told, call=lambda: allocate(folder, **options))
    analyze(case.model, case.calib, output=folder, **QUICK)
    allocate(folder, **options)


def test_names_of_results(case: Case, tmp_path: Path) -> None:
    before = case.model.read_bytes()
    for output, kind in (
        (tmp_path / "m.pb", SettingsError),
        (case.model, SettingsError),
        (tmp_path / "gone" / "m.onnx", OutputError),
        (tmp_path / f"{300 * 'm'}.onnx", OutputError),
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
    refused(ModelError, "mlp.onnx", "`model`", call=again)
    assert not (tmp_path / "m.onnx").exists()
    moved = saved(mlp(), tmp_path / "moved.onnx")
    again(model=moved)

    calib.rename(tmp_path / "moved.npz")
    refused(DataError, "calib.npz", "`calib`", call=lambda: again(model=moved))
    again(model=moved, calib=tmp_path / "moved.npz")
    refused(AnalysisError, "fixed.onnx", call=lambda: again(model=saved(mlp(batch=1), tmp_path / "fixed.onnx")))


def test_the_class_names_have_moved(tmp_path: Path) -> None:
    names, moved, other = (tmp_path / f"{name}.txt" for name in ("names", "moved", "other"))
    images = tmp_path / "images"
    for index, name in enumerate(np.repeat(["cat", "dog", "emu", "yak"], 8)):
        (images / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / name / f"{index}.png")
    names.write_text("yak\nemu\ndog\ncat\n")
    other.write_text("emu\nyak\ndog\ncat\n")
    model = saved(residual_convnet(size=8, width=2, classes=4), tmp_path / "conv.onnx")
    folder = analyze(model, images, classes=names, preprocessing="none", output=tmp_path / "a.infoq", **QUICK)
    names.rename(moved)

    def again(**options: Any) -> object:
        return allocate(folder, uniform_bits=(4, 4), output=tmp_path / "m.onnx", **options)

    refused(DataError, "names.txt", "`classes`", call=again)
    refused(AnalysisError, "other samples", call=lambda: again(classes=other))
    again(classes=moved)


def closed(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let a file be there and not be readable, also for an administrator."""

    def refusing(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if self == path and "r" in mode:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return opened(self, mode, *arguments, **options)

    opened = Path.open
    monkeypatch.setattr(Path, "open", refusing)


def test_files_that_may_not_be_read(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, output = Path(shutil.copy(case.model, tmp_path / "moved.onnx")), tmp_path / "m.onnx"

    def wanted() -> object:
        return allocate(case.analysis, uniform_bits=(4, 4), model=model, output=output)

    closed(monkeypatch, model)
    refused(ModelError, "moved.onnx", "Permission denied", call=wanted)
    monkeypatch.undo()
    output.touch()
    closed(monkeypatch, output)
    refused(OutputError, "m.onnx", "Permission denied", "-o", call=wanted)


def test_weights_outside_the_model_have_changed(tmp_path: Path) -> None:
    """Trained on in place: the .onnx stays as it is, its external data does not."""
    model, calib = tmp_path / "mlp.onnx", data_for(mlp(), tmp_path / "calib.npz")

    def exported(seed: int) -> bytes:
        outside = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
        (tmp_path / "weights.bin").unlink(missing_ok=True)
        onnx.save_model(mlp(seed), model, **outside)
        return model.read_bytes()

    before = exported(seed=0)
    folder = analyze(model, calib, output=tmp_path / "a.infoq", **QUICK)
    done = allocate(folder, uniform_bits=(4, 4), output=tmp_path / "m.onnx")
    assert done.float_file_bytes == len(before) + (tmp_path / "weights.bin").stat().st_size
    assert exported(seed=1) == before
    refused(
        AnalysisError,
        "mlp.onnx",
        "another model",
        call=lambda: allocate(folder, uniform_bits=(4, 4), output=tmp_path / "m.onnx"),
    )


@pytest.mark.parametrize(
    "change",
    [lambda table: table["scores"][0].update(value=1.0), lambda table: table.update(sha256="")],
    ids=["a score", "the hash"],
)
def test_scores_that_were_changed(change: Callable[[Any], None], copied: Path, tmp_path: Path) -> None:
    """A score of another value would change the bits without a word."""
    path = measured(copied).scores_by("kl-pooled")
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    budget = {"compression": 8}
    wanted = partial(allocate, copied, bounds=budget, weight_only=True, rounding="nearest", output=tmp_path / "m.onnx")
    refused(AnalysisError, "kl-pooled.json was changed after it was written", "`score`", call=wanted)
    score(copied, criterion="kl-pooled")
    wanted()


def test_scores_are_not_written_over_a_folder(copied: Path) -> None:
    path = measured(copied).scores_by("eagl")
    path.mkdir()
    refused(OutputError, "eagl.json", "remove it", call=partial(score, copied, criterion="eagl"))
    path.rmdir()
    score(copied, criterion="eagl")


def test_scores_are_made_again_by_the_command_in_the_message(copied: Path) -> None:
    """The path is quoted for the shell, and the options are those that the scores were made with."""
    folder = copied.rename(copied.with_name("my analyses.infoq"))
    path = measured(folder).scores_by("infoq")
    for options, told in (
        ({}, ""),
        ({"debias": True}, " `debias`"),
        ({"threshold": -0.5, "one_over_b": False}, " `threshold` -0.5 `no_one_over_b`"),
    ):
        score(folder, criterion="infoq", options=options)
        made = path.read_text()
        command = f"`score` {shlex.quote(str(measured(folder).path))} `criterion` infoq{told}"
        cut = made[: made.index('"scores"')]
        for damaged in (cut, made.replace('"schema": 2', '"schema": 99'), made.replace('"observer": ', "")):
            path.write_text(damaged if damaged != made else damaged.replace("0.", "1.", 1))
            with pytest.raises(AnalysisError) as caught:
                allocate(folder, bounds={"compression": 8}, criterion="infoq", output=folder / "m.onnx")
            assert str(caught.value).endswith(f"make it again with: {command}")


@pytest.mark.parametrize("name", ["current", "analysis.json", "ranges.npz", "SHA256SUMS"])
def test_a_folder_in_place_of_a_file_of_an_analysis(name: str, copied: Path, case: Case) -> None:
    """It is told as what it is, and analyze makes the file when it is removed."""
    path = copied / name if name == "current" else measured(copied).path / name
    path.unlink()
    path.mkdir()
    told = f"{path} is a folder, not a file; remove it and run analyze again"
    refused(AnalysisError, told, call=lambda: read_analysis(copied))
    path.rmdir()
    analyze(case.model, case.calib, output=copied, **QUICK)
    assert path.is_file()
    assert read_analysis(copied) == read_analysis(case.analysis)


def test_a_folder_in_place_of_scores(copied: Path, tmp_path: Path) -> None:
    path = measured(copied).scores_by("kl")
    path.unlink()
    path.mkdir()
    wanted = partial(allocate, copied, bounds={"compression": 8}, criterion="kl", output=tmp_path / "m.onnx")
    refused(AnalysisError, f"{path} is a folder, not a file; remove it and make it again with: `score`", call=wanted)
    path.rmdir()
    score(copied, criterion="kl")
    assert path.is_file()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"ranges", b"rangez"),
        (b"analysis.json", b"analysis.jsom"),
        (b"ranges.npz", b"../ranges.npz"),
        (b"  ranges", b" ranges"),
        (b"ranges", b"rang\xffs"),
        (
            b"\n",
            b"",
        ),
    ],
)
def test_damaged_checksums(old: bytes, new: bytes, copied: Path, case: Case) -> None:
    path = measured(copied).checksums
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    refused(AnalysisError, "SHA256SUMS is damaged; run analyze again", call=lambda: read_analysis(copied))
    analyze(case.model, case.calib, output=copied, **QUICK)
    read_analysis(copied)


def test_analyses_that_cannot_be_read(case: Case, copied: Path, tmp_path: Path) -> None:
    refused(AnalysisError, "nowhere", "analyze", call=lambda: read_analysis(tmp_path / "nowhere"))
    path = measured(copied).analysis
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
    # another version may have other fields
    for other in ({**json.loads(text), "schema": 999}, {"schema": 999}):
        path.write_text(json.dumps(other), encoding="utf-8")
        refused(AnalysisError, "schema 999", "update infoq-onnx", call=lambda: read_analysis(copied))
    path.write_text(text.replace('"seed"', '"sead"', 1), encoding="utf-8")
    refused(AnalysisError, "sead", "does not know", "analyze again", call=lambda: read_analysis(copied))
    path.write_text(text.replace('"seed": 0', '"seed": 1', 1), encoding="utf-8")
    refused(AnalysisError, "analysis.json", "was changed", call=lambda: read_analysis(copied))
    path.write_text(text, encoding="utf-8")
    assert read_analysis(copied) == read_analysis(case.analysis)
    measured(copied).grids.write_bytes(b"")
    refused(
        AnalysisError,
        "ranges.npz",
        call=lambda: allocate(copied, uniform_bits=(4, 4), output=tmp_path / "m.onnx"),
    )
    measured(copied).checksums.unlink()
    refused(AnalysisError, "SHA256SUMS", "analyze again", call=lambda: read_analysis(copied))


def test_an_analysis_of_a_version_that_saw_other_layers(case: Case, copied: Path, tmp_path: Path) -> None:
    path = measured(copied).analysis
    path.write_text(path.read_text(encoding="utf-8").replace('"macs": 192', '"macs": 191'), encoding="utf-8")
    measured(copied).seal()
    assert read_analysis(copied).network != read_analysis(case.analysis).network
    refused(
        AnalysisError,
        "another version",
        "mlp.onnx",
        "analyze again",
        call=lambda: allocate(copied, uniform_bits=(4, 4), output=tmp_path / "m.onnx"),
    )


@pytest.mark.parametrize("lacking", ["storage", "group", "weight"])
def test_an_analysis_of_a_version_that_needed_other_grids(lacking: str, copied: Path, tmp_path: Path) -> None:
    path = measured(copied).grids
    table = load_table(path)
    if lacking == "weight":
        del table.weights["fc2"][4]
    else:
        del table.activations["relu1_out"][4 if lacking == "group" else 8]
    save_table(table, path)
    measured(copied).seal()
    refused(
        AnalysisError,
        "ranges.npz",
        "another version",
        "analyze again",
        call=lambda: allocate(copied, uniform_bits=(4, 4), output=tmp_path / "m.onnx"),
    )


def test_nothing_that_allocate_did_not_write_is_replaced(case: Case, copied: Path, tmp_path: Path) -> None:
    def wanted(path: Path) -> None:
        allocate(copied, uniform_bits=(4, 4), output=path)

    (tmp_path / "mine.json").write_text('{"important": true}')
    refused(SettingsError, "mine.json", call=lambda: wanted(tmp_path / "mine.onnx"))
    refused(SettingsError, "analysis.json", call=lambda: wanted(measured(copied).path / "analysis.onnx"))
    shutil.copy(case.model, tmp_path / "copy.onnx")
    refused(SettingsError, "float model", call=lambda: wanted(tmp_path / "copy.onnx"))
    saved(mlp(seed=5), tmp_path / "theirs.onnx")
    (tmp_path / "text.onnx").write_text("notes")
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "link.onnx").symlink_to(tmp_path / "nowhere.onnx")
    before = sorted(tmp_path.iterdir())
    for name, part in (
        ("theirs", "not a model that infoq-onnx wrote"),
        ("text", "not a model that infoq-onnx wrote"),
        ("pipe", "not a regular file"),
        ("link", "a link to a file that is gone"),
    ):
        path = tmp_path / f"{name}.onnx"
        refused(SettingsError, str(path), part, "choose another name", call=lambda path=path: wanted(path))
    assert sorted(tmp_path.iterdir()) == before
    allocate(copied, uniform_bits=(4, 4), output=tmp_path / "theirs.onnx", force=True)
    wanted(tmp_path / "theirs.onnx")
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
    (tmp_path / "empty.infoq").mkdir()
    refused(AnalysisError, "no finished analysis", call=lambda: find_analysis(tmp_path))
    for age, name in enumerate(("new.infoq", "old.infoq")):
        folder = Path(shutil.copytree(case.analysis, tmp_path / name))
        os.utime(measured(folder).analysis, (1e9 - age, 1e9 - age))
    (tmp_path / "unfinished.infoq" / "0123456789ab").mkdir(parents=True)
    assert find_analysis(tmp_path) == tmp_path / "new.infoq"
    for name, pointer in (("new", "../../etc"), ("old", "garbage")):
        (tmp_path / f"{name}.infoq" / "current").write_text(pointer)
        refused(
            AnalysisError,
            f"{name}.infoq",
            "current is damaged",
            call=lambda name=name: current(tmp_path / f"{name}.infoq"),
        )
    refused(AnalysisError, "new.infoq", "current is damaged", call=lambda: find_analysis(tmp_path))
    shutil.copy(case.analysis / "current", tmp_path / "new.infoq")
    monkeypatch.chdir(tmp_path)
    assert find_analysis() == Path("new.infoq")


@pytest.mark.parametrize("old", [False, True])
def test_a_model_that_fails_its_check_is_not_left(
    old: bool, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:
        allocate(case.analysis, uniform_bits=(2, 2), output=tmp_path / "m.onnx")
        before = content(tmp_path, "m.json", "m.onnx")

    def fail(path: Path, *_: object, **__: object) -> None:
        onnx.load(path)
        raise VerificationError("m.onnx disagrees")

    monkeypatch.setattr(emitting, "verify", fail)
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


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda case: analyze(3, case.calib), "`model` 3: give a path"),
        (lambda case: analyze(case.model, None), "`calib` None: give a path"),
        (lambda case: analyze(case.model, case.calib, output=""), "`output` '': the path is empty"),
        (
            lambda case: analyze(case.model, case.calib, workers="two"),
            "`workers` 'two': give a whole number, 'auto' or None",
        ),
        (lambda case: analyze(case.model, case.calib, workers=1.5), "`workers` 1.5"),
        (lambda case: analyze(case.model, case.calib, memory=-1), "`memory`: '-1'"),
        (lambda case: analyze(case.model, case.calib, preprocessing=3), "`preprocessing` 3: give a text, a function"),
        (lambda case: analyze(case.model, case.calib, bits=[]), "`bits`"),
        (lambda _: allocate(b"a.infoq", uniform_bits=(4, 4)), "`analysis` b'a.infoq': give a path"),
        (lambda case: allocate(case.analysis, uniform_bits=(4, 4), force="yes"), "`force` 'yes': give True or False"),
        (lambda case: evaluate("", case.calib), "`model` '': the path is empty"),
        (lambda case: evaluate(case.model, case.calib, samples="3"), "`samples` '3': give a whole number or None"),
        (lambda case: score(case.analysis, criterion=None), "`criterion` None: give a text"),
    ],
)
def test_arguments_of_the_wrong_type(call: Callable[[Case], object], part: str, case: Case) -> None:
    refused(SettingsError, part, call=lambda: call(case))


def test_score_looks_for_the_files_that_it_is_given(copied: Path) -> None:
    """Also for those that the criterion does not need; and an error that is not the criterion's is told as itself."""
    for name, kind in (("model", ModelError), ("calib", DataError), ("classes", DataError)):
        given = {name: "nowhere"}
        refused(kind, f"is not there; check `{name}`", call=partial(score, copied, criterion="kl", **given))
    other = saved(mlp(seed=3), copied.parent / "other.onnx")
    refused(AnalysisError, "another model", call=lambda: score(copied, criterion="eagl", model=other))
