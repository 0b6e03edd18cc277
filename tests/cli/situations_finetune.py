"""What is wrong in the rows of docs/errors.md on finetune: `FINETUNING`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from infoq_onnx import pipeline
from infoq_onnx.reporter import Silent

if TYPE_CHECKING:
    from tests.cli.situations import Place


def allocated(place: Place) -> None:
    analysis, output = place.folder / "model.infoq", place.folder / "small.onnx"
    pipeline.allocate(analysis, uniform_bits=(2, 2), rounding="nearest", output=output)


def allocated_elsewhere(place: Place) -> None:
    allocated(place)
    settings: dict[str, Any] = {"bits": (2, 4, 8), "trial_rounding": "nearest", "output": place.folder / "plain.infoq"}
    pipeline.analyze(place.folder / "model.onnx", place.folder / "data.npz", **settings)


def another_model_beside(place: Place) -> None:
    allocated(place)
    shutil.copy(place.folder / "model.onnx", place.folder / "small.onnx")


def finetuned(place: Place) -> None:
    allocated(place)
    done = pipeline.finetune("small.json", "data.npz", learning_rate=0.01, device="cpu")
    assert done is not None


def without_torch(place: Place) -> None:
    allocated(place)
    place.monkeypatch.setitem(sys.modules, "torch", None)


def unlabelled(place: Place) -> None:
    allocated(place)
    with np.load(place.folder / "data.npz") as arrays:
        np.savez(place.folder / "unlabelled.npz", x=arrays["x"])


def training_stopped(place: Place) -> None:
    allocated(place)

    class Stopping(Silent):
        def progress(self, stage: str, detail: str, done: int, total: int, share: float | None = None) -> None:
            del detail, total, share
            if stage == "training" and done == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.finetune("small.json", "data.npz", checkpoint_steps=1, device="cpu", reporter=Stopping())


FINETUNING: dict[str, Callable[[Place], None]] = {
    "an allocation of another analysis": allocated_elsewhere,
    "another model beside the allocation": another_model_beside,
    "a model that is fine-tuned already": finetuned,
    "PyTorch is not installed": without_torch,
    "labels that no image has": unlabelled,
    "a learning rate that is too large": allocated,
    "a time that is none": allocated,
    "a device that is not there": allocated,
    "training improves nothing": allocated,
    "a checkpoint of another training": training_stopped,
}
"""Situation → a function that makes it in a folder."""
