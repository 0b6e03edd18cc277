"""Fine-tune block by block: each block learns to compute what the float network's block computes.

As in BRECQ (Li et al. 2021), blocks are residual blocks or single layers, in order, and each one reads what the blocks
before it compute. As in QDrop (Wei et al. 2022), its inputs are mixed with those of the float network at random, value
by value, so that it does not rely on the errors of the blocks before it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.training.blocks import Block, blocks_of
from infoq_onnx.training.trainer import Outcome, Trainer, share_of_rate

_KEPT_BYTES = 1 << 30
"""Memory for the inputs and outputs of a block: where the images take more, fewer are used for this block."""
_DROPPED = 0.5
"""Share of the inputs that are the float network's (QDrop)."""


class Reconstructor(Trainer):
    """Trains a student block by block, with images as they are; the parameters are those of `Trainer`."""

    @functools.cached_property
    def _blocks(self) -> tuple[Block, ...]:
        of = self._student.of
        return blocks_of(of.graph, of.network)

    @property
    def _fixed(self) -> int | None:
        """Fixed batch of the graph."""
        return self._student.of.graph.batch

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
        batch = self._fixed or self._batch
        steps = max(1, len(own) // batch)
        total = settings.epochs * steps
        for step in range(total):
            epoch, part = divmod(step, steps)
            order = np.random.default_rng([settings.seed, index, epoch]).permutation(len(own))
            positions = torch.from_numpy(order[part * batch : (part + 1) * batch])
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
        graph = self._student.of.graph
        size = 4 * (2 * graph.elements(block.start) + graph.elements(block.end))
        count = min(len(self._images), max(self._fixed or self._batch, _KEPT_BYTES // size))
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
        for batch in dataset.batches(self._fixed or 64):
            if self._fixed is None or len(batch) == self._fixed:
                yield torch.from_numpy(batch).to(self._device)
