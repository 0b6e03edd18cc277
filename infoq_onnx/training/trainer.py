"""Train a quantized network to predict what the float network predicts.

The loss is the divergence of the student's softmax from that of the float network on the same images, which needs no
labels (Hinton et al. 2015, at temperature 1); cross-entropy with the labels may be added. Everything random depends on
the seed and the number of the step alone, so that a training that goes on after a stop ends like one without.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.reporter import Reporter
from infoq_onnx.schema import FinetuneSettings, HeldOut
from infoq_onnx.torch_graph.graph_module import GraphModule
from infoq_onnx.training import checkpoint, distributed
from infoq_onnx.training.augmentation import augmentation
from infoq_onnx.training.student import Student

_EVALUATED = 128
"""Images of a batch without gradients."""


@dataclass(frozen=True)
class Outcome:
    """What a training led to; the student has the best values on return."""

    before: HeldOut
    """The student before training, on held-out images."""
    after: HeldOut
    """The best student, on the same images."""
    steps: int
    """Number of updates that were made, or of blocks that were trained."""
    best_step: int
    """That after which the student was best; 0 if training improved nothing."""


@dataclass
class State:
    """How far a training has come."""

    step: int
    """Number of updates, or of blocks."""
    best_step: int
    """That of the best state so far."""
    waited: int
    """Number of comparisons since then."""
    before: HeldOut
    best: HeldOut
    kept: dict[str, Tensor]
    """The best values so far."""

    @property
    def outcome(self) -> Outcome:
        """What the training has led to so far."""
        return Outcome(self.before, self.best, self.step, self.best_step)


class Trainer:
    """Trains a student.

    Parameters
    ----------
    student : the quantized network
    teacher : the float network
    images : images to train with
    held_out : other images, which choose the best state
    settings : how to train
    path : file of checkpoints
    fingerprint : hash of everything else that the result depends on
    reporter : receives progress

    Attributes
    ----------
    fingerprint : str
        What identifies this training in its checkpoints.
    """

    def __init__(
        self,
        student: Student,
        teacher: GraphModule,
        images: Dataset,
        held_out: Dataset,
        settings: FinetuneSettings,
        path: Path,
        fingerprint: str,
        reporter: Reporter,
    ) -> None:
        self._settings, self._path, self._reporter = settings, path, reporter
        self._device = distributed.device(settings.device)
        self._student, self._teacher = student.to(self._device), teacher.to(self._device)
        self._images, self._held_out = images, held_out
        self._augment = augmentation(settings.augment, images.layout)
        self.fingerprint = hashlib.sha256(f"{fingerprint} {settings.identity}".encode()).hexdigest()
        self._batch = min(settings.batch, len(images))
        self._steps_per_epoch = max(1, len(images) // self._batch)
        self._total = settings.epochs * self._steps_per_epoch
        self._parameters = {name: one for name, one in student.named_parameters() if one.requires_grad}
        self._optimizer = _optimizer(student, settings)
        self._targets = [self._teacher_logits(batch) for batch in self._batches(held_out)]

    def run(self, save_best: Callable[[Outcome], object] | None = None) -> Outcome:
        """Train, from the last checkpoint if there is one.

        Parameters
        ----------
        save_best : called whenever a better state was found; the student holds it at that time
        """
        began, settings = time.monotonic(), self._settings
        state = self._begun()
        if state.step:
            self._reporter.note(f"training goes on after step {state.step} of {self._total}")
        network = distributed.wrapped(self._student, self._device)
        self._tell(state, self._total)
        while state.step < self._total and state.waited < settings.patience and not self._is_late(began):
            self._update(network, state.step)
            state.step += 1
            done = state.step == self._total
            if state.step % self._steps_per_epoch == 0 or done:
                self._compare(state, save_best)
            if state.step % settings.checkpoint_steps == 0 or done:
                self._save(state)
            self._tell(state, self._total)
        if state.step % self._steps_per_epoch and state.step < self._total:
            # the time is over within an epoch, whose updates are not to be lost
            self._compare(state, save_best)
        return self._ended(state, self._total)

    @torch.no_grad()
    def evaluate(self) -> HeldOut:
        """Compare the student with the float network on the held-out images."""
        divergence = same = right = cross = 0.0
        given = self._student.constants()
        for first, (images, targets) in enumerate(zip(self._batches(self._held_out), self._targets, strict=True)):
            logits: Tensor = self._student.network(images, given)
            divergence += float(_divergence(logits, targets, "sum"))
            same += float((logits.argmax(1) == targets.argmax(1)).sum())
            if (labels := self._held_out.labels) is not None:
                part = torch.from_numpy(labels[first * _EVALUATED :][: len(images)]).to(self._device)
                right += float((logits.argmax(1) == part).sum())
                cross += float(functional.cross_entropy(logits.double(), part, reduction="sum"))
        count, share = len(self._held_out), self._settings.labels
        loss = (1 - share) * divergence + (share * cross if share else 0.0)
        accuracy = None if self._held_out.labels is None else right / count
        return HeldOut(count, loss / count, divergence / count, same / count, accuracy)

    # ------------------------------------------------------------------------------------------------------- steps

    def _update(self, network: torch.nn.Module, step: int) -> None:
        settings = self._settings
        rate = share_of_rate(step, self._total, settings.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = settings.rate * rate
        positions = self._positions(step)
        images = torch.from_numpy(next(self._images.part(positions).batches(len(positions))))
        if self._augment is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.seed * 1_000_003 + step)
                images = self._augment(images)
        images = images.to(self._device)
        targets = self._teacher_logits(images)
        mixed = settings.precision == "mixed"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=mixed):
            logits = network(images).float()
        loss = _divergence(logits, targets, "mean")
        if settings.labels:
            labels = torch.from_numpy(self._images.labels[positions]).to(self._device)  # type: ignore[index]
            loss = (1 - settings.labels) * loss + settings.labels * functional.cross_entropy(logits, labels)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._student.limit()

    def _positions(self, step: int) -> npt.NDArray[np.int64]:
        """Return the images of a step: each epoch is a permutation of its own."""
        epoch, part = divmod(step, self._steps_per_epoch)
        order = np.random.default_rng([self._settings.seed, epoch]).permutation(len(self._images))
        return distributed.share_of(order[part * self._batch : (part + 1) * self._batch])

    @torch.no_grad()
    def _teacher_logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self._teacher(images)
        return logits

    def _batches(self, dataset: Dataset) -> Iterator[Tensor]:
        for batch in dataset.batches(_EVALUATED):
            yield torch.from_numpy(batch).to(self._device)

    # ------------------------------------------------------------------------------------------------- checkpoints

    def _values(self) -> dict[str, Tensor]:
        return {name: one.detach().clone() for name, one in self._parameters.items()}

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, one in self._parameters.items():
            one.copy_(values[name])

    def _begun(self) -> State:
        """Return the state of the last checkpoint, or that before training."""
        found = checkpoint.load(self._path, self.fingerprint)
        if found is None:
            now = self.evaluate()
            return State(0, 0, 0, now, now, self._values())
        step, best_step, waited = (int(found.state[name]) for name in ("step", "best_step", "waited"))
        before, best = HeldOut(**found.state["before"]), HeldOut(**found.state["best"])
        return State(step, best_step, waited, before, best, self._restored(found))

    def _is_late(self, began: float) -> bool:
        """Whether the time for training is over."""
        limit = self._settings.max_seconds
        return limit is not None and distributed.any_of(time.monotonic() - began > limit, self._device)

    def _compare(self, state: State, save_best: Callable[[Outcome], object] | None) -> None:
        """Keep the student if it is the best one so far."""
        now = self.evaluate()
        state.waited += 1
        if now.loss < state.best.loss:
            state.best, state.best_step, state.waited, state.kept = now, state.step, 0, self._values()
            if save_best is not None and distributed.is_first():
                save_best(state.outcome)

    def _tell(self, state: State, total: int) -> None:
        best = state.best
        accuracy = "" if best.accuracy is None else f", accuracy {100 * best.accuracy:.1f} %"
        told = f"held out: divergence {best.divergence:.4f}, agreement {100 * best.agreement:.1f} %{accuracy}"
        self._reporter.progress("training", told, state.step, total)

    def _ended(self, state: State, total: int) -> Outcome:
        """Give the student its best values."""
        outcome = state.outcome
        state.step = total
        self._tell(state, total)
        self._set(state.kept)
        return outcome

    def _save(self, state: State) -> None:
        if not distributed.is_first():
            return
        tensors: dict[str, Tensor] = {f"now/{name}": one for name, one in self._parameters.items()}
        tensors |= {f"best/{name}": one for name, one in state.kept.items()}
        for name, one in self._parameters.items():
            for key, value in self._optimizer.state.get(one, {}).items():
                tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
        told: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "step": state.step,
            "best_step": state.best_step,
            "waited": state.waited,
            "before": vars(state.before),
            "best": vars(state.best),
        }
        checkpoint.save(self._path, tensors, told)

    def _restored(self, found: checkpoint.Checkpoint) -> dict[str, Tensor]:
        """Take over a checkpoint, and return the best values so far."""
        held = found.tensors
        wanted = {f"{kind}/{name}": one.shape for kind in ("now", "best") for name, one in self._parameters.items()}
        if any(name not in held or held[name].shape != shape for name, shape in wanted.items()):
            raise checkpoint.damaged(self._path)
        self._set({name: held[f"now/{name}"] for name in self._parameters})
        for name, one in self._parameters.items():
            keys = [key for key in held if key.startswith("optimizer/") and key.split("/", 2)[2] == name]
            if keys:
                self._optimizer.state[one] = {key.split("/", 2)[1]: held[key].to(one.device) for key in keys}
                if "step" in self._optimizer.state[one]:
                    self._optimizer.state[one]["step"] = self._optimizer.state[one]["step"].cpu()
        return {name: held[f"best/{name}"].to(self._device) for name in self._parameters}


def _optimizer(student: Student, settings: FinetuneSettings) -> torch.optim.Optimizer:
    groups = [
        {"params": parameters, "weight_decay": settings.weight_decay if kind == "weights" else 0.0}
        for kind, parameters in student.groups()
        if parameters
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.rate, momentum=0.9)
    return torch.optim.AdamW(groups, settings.rate)


def share_of_rate(step: int, total: int, warmup: float) -> float:
    """Return the learning rate of a step as a share: linear warm-up, then half a cosine down to 0."""
    first = max(1, round(warmup * total))
    if step < first:
        return (step + 1) / first
    return 0.5 * (1 + math.cos(math.pi * (step - first) / max(1, total - first)))


def _divergence(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Return the KL divergence of the softmax of logits from that of targets, summed or averaged over images."""
    summed = functional.kl_div(
        torch.log_softmax(logits.double(), 1), torch.log_softmax(targets.double(), 1), reduction="sum", log_target=True
    )
    return summed / len(logits) if reduction == "mean" else summed
