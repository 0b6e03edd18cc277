"""Fine-tune block by block: each block learns to compute what the float network's block computes.

As in BRECQ (Li et al. 2021), blocks are residual blocks or single layers, in order, and each one reads what the blocks
before it compute. As in QDrop (Wei et al. 2022), its inputs are mixed with those of the float network at random, value
by value, so that it does not rely on the errors of the blocks before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.reporter import Reporter
from infoq_onnx.schema import FinetuneSettings
from infoq_onnx.torch_graph.graph_module import GraphModule
from infoq_onnx.training.blocks import Block, blocks_of
from infoq_onnx.training.student import Student
from infoq_onnx.training.trainer import Outcome, Trainer, share_of_rate

_KEPT_BYTES = 1 << 30
"""Memory for the inputs and outputs of a block: where the images take more, fewer are used for this block."""
_DROPPED = 0.5
"""Share of the inputs that are the float network's (QDrop)."""


class Reconstructor(Trainer):
    """Trains a student block by block; the parameters are those of `Trainer`."""

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
        super().__init__(student, teacher, images, held_out, settings, path, fingerprint, reporter)
        graph, network = student.of.graph, student.of.network
        self._blocks = blocks_of(graph, network)
        self._elements = {name: graph.elements(name) for block in self._blocks for name in (block.start, block.end)}
        fixed = graph.batch
        self._batch = min(settings.batch, len(images)) if fixed is None else fixed

    def run(self, save_best: Callable[[Outcome], object] | None = None) -> Outcome:
        """Train all blocks, from the last checkpoint if there is one; see `Trainer.run`."""
        began, total = time.monotonic(), len(self._blocks)
        state = self._begun()
        if state.step:
            self._reporter.note(f"training goes on after block {state.step} of {total}")
        for index in range(state.step, total):
            self._tell(state, total)
            if self._is_late(began):
                break
            self._reconstruct(index, self._blocks[index])
            state.step += 1
            self._compare(state, save_best)
            self._save(state)
        return self._ended(state, total)

    def _reconstruct(self, index: int, block: Block) -> None:
        """Train one block."""
        settings, student = self._settings, self._student
        names = student.network.reads([block.start], [block.end])
        parameters = student.parameters_of(names)
        if not parameters:
            return
        own, floats, targets = self._activations(block)
        scale = 1.0 / max(float(targets.double().var()), 1e-30)
        optimizer = torch.optim.AdamW(parameters, settings.rate, weight_decay=0.0)
        steps = max(1, len(own) // self._batch)
        total = settings.epochs * steps
        for step in range(total):
            epoch, part = divmod(step, steps)
            order = np.random.default_rng([settings.seed, index, epoch]).permutation(len(own))
            positions = torch.from_numpy(order[part * self._batch : (part + 1) * self._batch])
            random = torch.Generator().manual_seed((settings.seed * 1_000_003 + index) * 1_000_003 + step)
            dropped = torch.rand(own[positions].shape, generator=random) < _DROPPED
            inputs = torch.where(dropped, floats[positions], own[positions]).to(self._device)
            for group in optimizer.param_groups:
                group["lr"] = settings.rate * share_of_rate(step, total, settings.warmup)
            given = {**student.constants(names), block.start: inputs}
            with torch.autocast(self._device.type, torch.bfloat16, enabled=settings.precision == "mixed"):
                output = student.network.values(given, [block.end])[block.end].float()
            loss = (output - targets[positions].to(self._device)).square().mean() * scale
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            student.limit()

    @torch.no_grad()
    def _activations(self, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """Return a block's inputs in the student and in the float network, and its outputs in the float network."""
        size = 4 * (2 * self._elements[block.start] + self._elements[block.end])
        count = min(len(self._images), max(self._batch, _KEPT_BYTES // size))
        chosen = np.sort(np.random.default_rng(self._settings.seed).permutation(len(self._images))[:count])
        own, floats, targets = [], [], []
        constants = self._student.constants()
        for images in self._whole_batches(self._images.part(chosen)):
            given = {self._teacher.input: images}
            exact = self._teacher.values(given, [block.start, block.end])
            floats.append(exact[block.start].cpu())
            targets.append(exact[block.end].cpu())
            own.append(self._student.network.values({**constants, **given}, [block.start])[block.start].cpu())
        return torch.cat(own), torch.cat(floats), torch.cat(targets)

    def _whole_batches(self, dataset: Dataset) -> Iterator[Tensor]:
        """Yield batches on the device; of a graph with a fixed batch, whole ones only."""
        fixed = self._student.of.graph.batch
        for batch in dataset.batches(fixed or 64):
            if fixed is None or len(batch) == fixed:
                yield torch.from_numpy(batch).to(self._device)
