"""`finetune`: from an allocation to a better model, and back to ONNX."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from infoq_onnx.emit.reading import read_codes  # noqa: E402
from infoq_onnx.emit.storage import STORAGES  # noqa: E402
from infoq_onnx.errors import (  # noqa: E402
    AnalysisError,
    DataError,
    InfoQError,
    MissingDependencyError,
    ModelError,
    SettingsError,
    TrainingError,
)
from infoq_onnx.pipeline import allocate, analyze, evaluate, finetune, lint  # noqa: E402
from infoq_onnx.schema import Allocation, read  # noqa: E402
from tests.networks import residual_convnet  # noqa: E402
from tests.pipeline.cases import QUICK, Case, data_for, saved  # noqa: E402
from tests.prepared import is_one_line  # noqa: E402

FAST: dict[str, Any] = {"epochs": 3, "batch": 16, "learning_rate": 0.01, "augment": "none", "device": "cpu"}
_LONGER: dict[str, dict[str, Any]] = {
    "scales": {},
    "lsq": {"epochs": 10, "learning_rate": 0.003},
    "reconstruct": {"epochs": 10},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """Small networks train fastest on one thread, above all beside other tests."""
    torch.set_num_threads(1)


@dataclasses.dataclass(frozen=True)
class Start:
    """An allocation, with what it was made of."""

    model: Path
    train: Path
    analysis: Path
    allocation: Path


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """A small convolutional network at 3/3; nothing here may be changed."""
    folder = tmp_path_factory.mktemp("start")
    network = residual_convnet()
    model, train = saved(network, folder / "net.onnx"), data_for(network, folder / "train.npz", 96)
    analysis = analyze(model, train, output=folder / "net.infoq", samples=32, **QUICK)
    allocate(analysis, uniform_bits=(2, 2), rounding="nearest", output=folder / "small.onnx")
    return Start(model, train, analysis, folder / "small.json")


def tuned(start: Start, output: Path, **changes: Any) -> Allocation:
    result = finetune(start.allocation, start.train, analysis=start.analysis, output=output, **{**FAST, **changes})
    assert result is not None
    return result.compressed.allocation


@pytest.mark.parametrize("mode", ["scales", "lsq", "reconstruct"])
def test_the_written_model_is_better_and_otherwise_the_same(mode: str, start: Start, tmp_path: Path) -> None:
    found = tuned(start, tmp_path / "out.onnx", mode=mode, **_LONGER[mode])
    written = read(Allocation, (tmp_path / "out.json").read_text())
    assert written == found
    given = read(Allocation, start.allocation.read_text())
    assert dataclasses.replace(written, training=None) == given
    training = written.training
    assert training is not None
    assert training.after.divergence < training.before.divergence
    assert (training.mode, training.images, training.before.images) == (mode, 86, 10)
    sizes = [path.stat().st_size for path in (tmp_path / "out.onnx", start.allocation.with_suffix(".onnx"))]
    assert sizes[0] < sizes[1] + 1000
    assert [kernel.runs for kernel in lint(tmp_path / "out.onnx").kernels] == [
        kernel.runs for kernel in lint(start.allocation.with_suffix(".onnx")).kernels
    ]
    assert evaluate(tmp_path / "out.onnx", start.train, against=start.model).images == 96
    assert not list(tmp_path.glob("*.checkpoint"))


def test_same_seed_same_bytes(start: Start, tmp_path: Path) -> None:
    for name in ("one", "two"):
        tuned(start, tmp_path / f"{name}.onnx", mode="lsq", **_LONGER["lsq"])
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    tuned(start, tmp_path / "other.onnx", mode="lsq", **{**_LONGER["lsq"], "seed": 1})
    assert (tmp_path / "one.onnx").read_bytes() != (tmp_path / "other.onnx").read_bytes()


@pytest.mark.parametrize("storage", STORAGES)
def test_codes_are_read_from_every_storage(storage: str, start: Start, tmp_path: Path) -> None:
    from infoq_onnx.pipeline.allocating import decide_bits, round_weights
    from infoq_onnx.pipeline.resolving import Places, resolve
    from infoq_onnx.reporter import Silent
    from infoq_onnx.schema import AllocationSettings

    settings = AllocationSettings(uniform_bits=(2, 2), storage=storage)
    path = tmp_path / "net.onnx"
    request = resolve(start.analysis, settings, Places(), None, path, Silent())
    allocation = decide_bits(request)
    expected = round_weights(request, allocation)
    allocate(start.analysis, settings, output=path)
    found = read_codes(onnx.load(path), request.quantizable, allocation.bits, str(path))
    assert found.keys() == expected.keys()
    for name, held in expected.items():
        np.testing.assert_array_equal(found[name].weight, held.weight)
        np.testing.assert_array_equal(found[name].scales, held.scales)
        np.testing.assert_array_equal(found[name].bias, held.bias)
    assert any(held.rounded.origins is not None for held in found.values())


def test_labels_and_images_of_ones_own(start: Start, tmp_path: Path) -> None:
    with np.load(start.train) as arrays:
        np.savez(tmp_path / "val.npz", x=arrays["x"][:20], y=arrays["y"][:20])
        np.savez(tmp_path / "unlabelled.npz", x=arrays["x"])
    found = tuned(start, tmp_path / "out.onnx", labels=0.5, val=tmp_path / "val.npz").training
    assert found is not None
    assert (found.images, found.before.images) == (96, 20)
    assert found.before.accuracy is not None
    unlabelled = dataclasses.replace(start, train=tmp_path / "unlabelled.npz")
    found = tuned(unlabelled, tmp_path / "other.onnx").training
    assert found is not None
    assert found.before.accuracy is None
    with pytest.raises(DataError) as error:
        tuned(unlabelled, tmp_path / "third.onnx", labels=0.5)
    assert is_one_line(error.value, "labels")


def test_a_model_that_gets_no_better_is_not_written(start: Start, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as error:
        tuned(start, tmp_path / "out.onnx", learning_rate=1e-30, epochs=1)
    assert is_one_line(error.value, "did not improve")
    assert not list(tmp_path.iterdir())


def test_the_best_so_far_is_exported(start: Start, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        finetune(
            start.allocation,
            start.train,
            analysis=start.analysis,
            output=tmp_path / "out.onnx",
            export_best=True,
            reporter=_Stopping(8),
            **FAST,
        )
    kept = read(Allocation, (tmp_path / "out.json").read_text()).training
    assert kept is not None
    assert 0 < kept.best_step < 8
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))


class _Stopping:
    def __init__(self, after: int) -> None:
        self.after = after

    def progress(self, stage: str, detail: str, done: int, total: int, share: float | None = None) -> None:
        del detail, total, share
        if stage == "training" and done == self.after:
            raise KeyboardInterrupt

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


def other_analysis(start: Start, folder: Path) -> dict[str, Any]:
    analysis = analyze(start.model, start.train, output=folder / "other.infoq", samples=16, **QUICK)
    return {"analysis": analysis}


def no_model(start: Start, folder: Path) -> dict[str, Any]:
    return {"allocation": shutil.copy(start.allocation, folder / "alone.json")}


def not_an_allocation(start: Start, folder: Path) -> dict[str, Any]:
    shutil.copy(start.allocation.with_suffix(".onnx"), folder / "wrong.onnx")
    (folder / "wrong.json").write_text("{}")
    return {"allocation": folder / "wrong.json"}


def another_model(start: Start, folder: Path) -> dict[str, Any]:
    shutil.copy(start.model, folder / "float.onnx")
    shutil.copy(start.allocation, folder / "float.json")
    return {"allocation": folder / "float.json"}


def tuned_already(start: Start, folder: Path) -> dict[str, Any]:
    tuned(start, folder / "tuned.onnx", epochs=1)
    return {"allocation": folder / "tuned.json"}


def itself(start: Start, folder: Path) -> dict[str, Any]:
    for suffix in (".json", ".onnx"):
        shutil.copy(start.allocation.with_suffix(suffix), folder / f"same{suffix}")
    return {"allocation": folder / "same.json", "output": folder / "same.onnx"}


def one_image(start: Start, folder: Path) -> dict[str, Any]:
    with np.load(start.train) as arrays:
        np.savez(folder / "one.npz", x=arrays["x"][:1])
    return {"train": folder / "one.npz"}


@pytest.mark.parametrize(
    ("made", "kind", "told"),
    [
        (other_analysis, AnalysisError, "was not made from the analysis"),
        (no_model, ModelError, "alone.onnx is not there"),
        (not_an_allocation, ModelError, "is not an allocation"),
        (another_model, ModelError, "is not the model of this allocation"),
        (tuned_already, ModelError, "is fine-tuned already"),
        (itself, SettingsError, "choose another name"),
        (one_image, DataError, "holds 1 image"),
        ({"epochs": 0}, SettingsError, "`epochs` 0: give 1 or more"),
        ({"batch": 0}, SettingsError, "`batch` 0: give 1 or more"),
        ({"held_out": 1.0}, SettingsError, "`held_out` 1: give a share"),
        ({"learning_rate": float("nan")}, SettingsError, "`learning_rate` nan"),
        ({"learning_rate": 0.0}, SettingsError, "`learning_rate` 0"),
        ({"labels": 2.0}, SettingsError, "`labels` 2: give 0 to 1"),
        ({"max_seconds": 0.0}, SettingsError, "`max_seconds` 0"),
        ({"storage": "none"}, SettingsError, "`storage` none: choose"),
        ({"mode": "all"}, SettingsError, "`mode` 'all'"),
        ({"device": "tpu9"}, SettingsError, "`device` tpu9"),
        ({"mode": "reconstruct", "labels": 0.5}, SettingsError, "reconstruct uses no labels"),
        ({"samples": 1}, SettingsError, "`samples` 1: give 2 or more"),
        ({"seed": -1}, SettingsError, "`seed` -1"),
        ({"output": "small.txt"}, SettingsError, "must end in .onnx"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    made: Callable[[Start, Path], dict[str, Any]] | dict[str, Any],
    kind: type[InfoQError],
    told: str,
    start: Start,
    tmp_path: Path,
) -> None:
    given = made if isinstance(made, dict) else made(start, tmp_path)
    arguments = {
        "allocation": start.allocation,
        "train": start.train,
        "analysis": start.analysis,
        "output": tmp_path / "out.onnx",
        **FAST,
        **given,
    }
    with pytest.raises(kind) as error:
        finetune(**arguments)
    assert is_one_line(error.value, told)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("name", ["torch", "safetensors"])
def test_without_the_extra(name: str, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError) as error:
        finetune(start.allocation, start.train)
    assert is_one_line(error.value, "pip install 'infoq-onnx[finetune]'")


def test_without_a_fitting_torchvision(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    with pytest.raises(MissingDependencyError) as error:
        tuned(start, tmp_path / "out.onnx", augment="flip-crop")
    assert is_one_line(error.value, "augment", "none")


def test_several_processes(start: Start, tmp_path: Path) -> None:
    """As torchrun starts them: they train one model, and the first one writes it."""
    code = (
        "import sys, warnings; from infoq_onnx.pipeline import finetune\n"
        "done = finetune(sys.argv[1], sys.argv[2], analysis=sys.argv[3], output=sys.argv[4], epochs=2, batch=16,"
        " learning_rate=0.01, augment='none', device='cpu')\n"
        "print('wrote' if done is not None else 'helped')"
    )
    script = tmp_path / "train.py"
    script.write_text(f"if __name__ == '__main__':\n    {code.replace(chr(10), chr(10) + '    ')}\n")
    files = [str(path) for path in (start.allocation, start.train, start.analysis, tmp_path / "out.onnx")]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), *files],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["helped", "wrote"]
    training = read(Allocation, (tmp_path / "out.json").read_text()).training
    assert training is not None
    assert training.after.divergence < training.before.divergence


def test_everything_else_works_without_torch(case: Case) -> None:
    """No other verb imports torch."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"from infoq_onnx import pipeline; pipeline.inspect({str(case.model)!r})\n"
        "import infoq_onnx.cli"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
