"""Training improves the student, and goes on after a stop as if there had been none."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from infoq_onnx.errors import OutputError, SettingsError  # noqa: E402
from infoq_onnx.reporter import Silent  # noqa: E402
from infoq_onnx.schema import FinetuneSettings  # noqa: E402
from infoq_onnx.simulate.simulation import layer_codes  # noqa: E402
from infoq_onnx.torch_graph.graph_module import GraphModule  # noqa: E402
from infoq_onnx.training import checkpoint, distributed  # noqa: E402
from infoq_onnx.training.blocks import blocks_of  # noqa: E402
from infoq_onnx.training.reconstruction import Reconstructor  # noqa: E402
from infoq_onnx.training.student import Student  # noqa: E402
from infoq_onnx.training.trainer import Outcome, Trainer  # noqa: E402
from tests.prepared import dataset_of, images, is_one_line, small  # noqa: E402

SETTINGS = FinetuneSettings(
    epochs=4, batch=16, learning_rate=0.01, augment="none", checkpoint_steps=3, device="cpu", mode="lsq"
)


class Stopping(Silent):
    """Stops the training after some updates, as Ctrl-C would."""

    def __init__(self, after: int | None = None) -> None:
        self.after, self.notes = after, list[str]()

    def progress(self, stage: str, detail: str, done: int, total: int, share: float | None = None) -> None:
        del detail, total, share
        if done == self.after and stage == "training":
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)


def trainer(
    path: Path, settings: FinetuneSettings = SETTINGS, reporter: Stopping | None = None, name: str = "residual"
) -> tuple[Student, Trainer]:
    ready = small(name)
    bits = ready.uniform(3, 3)
    student = Student(ready.quantizable, bits, layer_codes(ready.quantizable, bits), settings.mode)
    shape = ready.network.input_shape
    train, held_out = dataset_of(images(shape, 64, seed=5)), dataset_of(images(shape, 40, seed=6))
    teacher = GraphModule(ready.graph, batch=ready.graph.batch)
    way = Reconstructor if settings.mode == "reconstruct" else Trainer
    return student, way(student, teacher, train, held_out, settings, path, "", reporter or Stopping())


@pytest.mark.parametrize("mode", ["scales", "lsq"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_improves_the_student(mode: str, optimizer: str, tmp_path: Path) -> None:
    rate = {"adamw": 0.03, "sgd": 0.1}[optimizer]
    settings = dataclasses.replace(SETTINGS, mode=mode, optimizer=optimizer, learning_rate=rate)
    student, training = trainer(tmp_path / "checkpoint", settings)
    codes = {name: held.weight for name, held in student.export().codes.items()}
    outcome = training.run()
    assert outcome.after.divergence < 0.9 * outcome.before.divergence
    assert outcome.steps == 16
    # the student is the best one, not the last
    assert training.evaluate() == outcome.after
    now = {name: held.weight for name, held in student.export().codes.items()}
    assert any((now[name] != codes[name]).any() for name in codes) == (mode == "lsq")


@pytest.mark.parametrize("name", ["residual", "attention", "fixed batch"])
def test_blocks_learn_their_outputs(name: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, mode="reconstruct", epochs=8)
    student, training = trainer(tmp_path / "checkpoint", settings, name=name)
    outcome = training.run()
    assert outcome.after.divergence < 0.9 * outcome.before.divergence
    assert outcome.steps == len(blocks_of(student.of.graph, student.of.network))
    assert training.evaluate() == outcome.after


def test_stopped_blocks_go_on(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, mode="reconstruct")
    whole, training = trainer(tmp_path / "whole", settings)
    expected = training.run()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "stopped", settings, Stopping(2))[1].run()
    listener = Stopping()
    student, again = trainer(tmp_path / "stopped", settings, listener)
    assert again.run() == expected
    assert listener.notes == [f"training goes on after block 2 of {expected.steps}"]
    for (name, one), (_, other) in zip(whole.named_parameters(), student.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_fixed_batch(tmp_path: Path) -> None:
    """Of images that are no multiple of the model's batch."""
    outcome = trainer(tmp_path / "checkpoint", dataclasses.replace(SETTINGS, batch=10), name="fixed batch")[1].run()
    assert outcome.after.divergence < outcome.before.divergence


def test_divergence_is_that_of_the_predictions(tmp_path: Path) -> None:
    student, training = trainer(tmp_path / "checkpoint")
    ready = small("residual")
    values = torch.from_numpy(images(ready.network.input_shape, 40, seed=6))
    with torch.no_grad():
        p = torch.softmax(GraphModule(ready.graph)(values).double(), 1).numpy()
        q = torch.softmax(student(values).double(), 1).numpy()
    assert training.evaluate().divergence == pytest.approx(np.sum(p * np.log(p / q), axis=1).mean(), rel=1e-4)


@pytest.mark.parametrize("after", [1, 3, 7, 15])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_stopped_training_ends_like_one_that_was_not(after: int, optimizer: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, optimizer=optimizer)
    whole, training = trainer(tmp_path / "whole", settings)
    expected = training.run()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "stopped", settings, Stopping(after))[1].run()
    listener = Stopping()
    student, again = trainer(tmp_path / "stopped", settings, listener)
    assert again.run() == expected
    # at most one interval of three updates is lost
    kept = after // 3 * 3
    assert listener.notes == ([f"training goes on after step {kept} of 16"] if kept else [])
    for (name, one), (_, other) in zip(whole.named_parameters(), student.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "stopped").read_bytes()


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    expected = trainer(tmp_path / "checkpoint")[1].run()
    assert trainer(tmp_path / "checkpoint", reporter=Stopping(1))[1].run() == expected


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path / "checkpoint")[1].run()
    _, other = trainer(tmp_path / "checkpoint", dataclasses.replace(SETTINGS, seed=1))
    with pytest.raises(OutputError) as error:
        other.run()
    assert is_one_line(error.value, str(tmp_path / "checkpoint"), "other settings")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x08" + bytes(7) + b"{}      ", b"\xff" * 64])
def test_a_damaged_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(OutputError) as error:
        checkpoint.load(tmp_path / "checkpoint", "")
    assert is_one_line(error.value, str(tmp_path / "checkpoint"), "damaged")


def test_a_checkpoint_without_a_tensor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    trainer(path)[1].run()
    _, again = trainer(path)
    found = checkpoint.load(path, again.fingerprint)
    assert found is not None
    tensors = {name: one for name, one in found.tensors.items() if not name.startswith("best/")}
    checkpoint.save(path, tensors, found.state)
    with pytest.raises(OutputError) as error:
        again.run()
    assert is_one_line(error.value, "damaged")


def test_training_ends_without_gain_and_at_the_limit(tmp_path: Path) -> None:
    stuck = dataclasses.replace(SETTINGS, learning_rate=1e-30, patience=2)
    outcome = trainer(tmp_path / "stuck", stuck)[1].run()
    assert (outcome.steps, outcome.best_step) == (8, 0)
    assert outcome.before == outcome.after
    short = dataclasses.replace(SETTINGS, max_seconds=1e-9)
    assert trainer(tmp_path / "short", short)[1].run().steps == 0


def test_the_updates_of_a_broken_epoch_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, training = trainer(tmp_path / "checkpoint", dataclasses.replace(SETTINGS, epochs=40, max_seconds=60.0))
    begun = time.monotonic()
    seconds = iter(range(1000))
    # ten seconds a look at the clock: six updates of four an epoch
    monkeypatch.setattr("time.monotonic", lambda: begun + 10 * next(seconds))
    outcome = training.run()
    assert outcome.steps == 6
    assert outcome.best_step in (4, 6)


def test_where_and_how_long_is_no_matter_for_a_checkpoint(tmp_path: Path) -> None:
    expected = trainer(tmp_path / "checkpoint")[1].run()
    other = dataclasses.replace(SETTINGS, max_seconds=1e6, checkpoint_steps=7)
    assert trainer(tmp_path / "checkpoint", other, Stopping(1))[1].run() == expected


def test_the_best_state_is_handed_out(tmp_path: Path) -> None:
    seen: list[Outcome] = []
    _, training = trainer(tmp_path / "checkpoint")
    outcome = training.run(seen.append)
    assert seen
    assert seen[-1].after == outcome.after
    assert [one.after.loss for one in seen] == sorted((one.after.loss for one in seen), reverse=True)


def test_mixed_precision(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, precision="mixed")
    outcome = trainer(tmp_path / "checkpoint", settings)[1].run()
    assert outcome.after.divergence < outcome.before.divergence


@pytest.mark.parametrize("name", ["no such device", "cuda:99"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(SettingsError) as error:
        distributed.device(name)
    assert is_one_line(error.value, name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, device="cuda")
    outcome = trainer(tmp_path / "checkpoint", settings)[1].run()
    assert outcome.after.divergence < outcome.before.divergence
