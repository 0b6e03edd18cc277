"""Trials: one unit at low bits, everything else at the baseline, seen from the observers.

The baseline has 8-bit weights, and 8-bit activations are taken to be exact. Rounding every activation to 8 bits changes
next to nothing in the mean, but it is chaotic: a difference in the last place of one weight flips a code somewhere,
that flips more behind it, and logits end up half a percent of their spread apart. The scores of 4 to 8 bits would drown
in that noise, and one network exported twice would get two allocations (docs/methods.md has the figures). What a unit's
own quantizer does is measured in full.

A trial's samples and directions are the baseline's, so the noise they have in common cancels in the differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infoq_onnx import jit
from infoq_onnx.data.dataset import Dataset
from infoq_onnx.errors import ModelError
from infoq_onnx.graph.editing import with_initializers
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.session import Runtime, open_session, using
from infoq_onnx.quantize.codes import CodeTable
from infoq_onnx.quantize.grid import dequantize_weight, quantize_weight
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.schema import (
    BASELINE_BITS,
    Change,
    Delta,
    MeasurementSettings,
    Network,
    Trial,
    Unit,
    tensor_of,
    units_of,
)
from infoq_onnx.sensitivity.estimators import (
    Estimate,
    Prepared,
    paired_difference,
    prepare_projections,
    smi_discrete_from_projections,
    smi_from_prepared,
)
from infoq_onnx.sensitivity.estimators.sliced import directions
from infoq_onnx.sensitivity.observers import candidates
from infoq_onnx.sensitivity.projection import add_projections, projection_name
from infoq_onnx.simulate.quantizers.insert import grid_of_group
from infoq_onnx.simulate.running.batching import batch_size, run_batches
from infoq_onnx.simulate.running.divergence import kl_divergence
from infoq_onnx.simulate.running.prefix import Prefix
from infoq_onnx.simulate.running.spill import Spill
from infoq_onnx.simulate.running.suffix import Suffix, Variant

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """Everything the sweep works on."""

    graph: Graph
    """The normalised float graph."""
    network: Network
    table: GridTable
    dataset: Dataset
    labels: npt.NDArray[np.int64]
    """What top-1 is counted against [N]: true labels, or the float model's predictions in their stead."""
    targets: npt.NDArray[np.int64]
    """What SMI(L; Y) asks about [N]: the labels, or groups that stand in for them."""
    encoded: Array
    """X_E [N, e]."""
    settings: MeasurementSettings
    rounded: CodeTable
    """Weights by layer and bits, the baseline's included; a layer that is not in it is rounded to nearest."""


@dataclass(frozen=True)
class Task:
    """What one process does at a time: a unit at several bit-widths."""

    unit: Unit
    bits: tuple[int, ...]
    xl: tuple[str, ...] = ()
    """Candidates whose SMI(X_E; L) is wanted."""
    ly: tuple[str, ...] = ()
    """Candidates whose SMI(L; Y) is wanted."""


@dataclass(frozen=True)
class Baseline:
    """The baseline, seen from every candidate."""

    logits: Array
    x: Prepared
    """Projections of X_E. Taken here once, since a matrix product may depend on how many threads it has."""
    xl: dict[str, Estimate]
    ly: dict[str, Estimate]


class Bench:
    """The baseline network with its observers, ready for trials."""

    def __init__(self, problem: Problem, spill: Spill | None = None) -> None:
        """Make it of a problem, and of where activations go that would take too much memory."""
        self.problem = problem
        self.candidates = candidates(problem.graph, problem.network)
        self._smi = SmiEstimator(problem)
        values: dict[str, npt.NDArray[np.generic]] = {}
        for unit in units_of(problem.network, weight_only=True):
            values.update(_variant(problem, unit, BASELINE_BITS))
        model = with_initializers(problem.graph.model, values)
        del values
        settings = problem.settings
        self.prefix = Prefix(Graph(model), problem.network, problem.dataset, spill)
        self._observed = Graph(
            add_projections(model, problem.graph, self.candidates, settings.projections, settings.seed)
        )

    def baseline(self) -> Baseline:
        """Measure the baseline.

        Raises
        ------
        ModelError
            A tensor that is observed holds values too large to be projected.
        """
        outputs = [self._observed.output, *(projection_name(tensor) for tensor in self.candidates)]
        opened = open_session(self._observed.model)
        size = batch_size(self.problem.graph)
        batches = run_batches(opened, self._observed, outputs, self.problem.dataset, size)
        logits, *projections = (np.concatenate(column) for column in zip(*(r for _, r in batches), strict=True))
        named = list(zip(self.candidates, projections, strict=True))
        for tensor, values in named:
            if not np.isfinite(values).all():
                raise ModelError(
                    f"{tensor} holds values so large that sums of them exceed float32, with 8-bit weights; scale the "
                    "weights or the inputs, or check the preprocessing"
                )
        x = _projected(self.problem)
        return Baseline(
            logits.reshape(len(logits), -1).astype(np.float64),
            x,
            {tensor: self._smi.xl(x, values) for tensor, values in named},
            {tensor: self._smi.ly(values) for tensor, values in named},
        )

    def reached(self, unit: Unit) -> set[str]:
        """Return the candidates that a unit can change."""
        tensor = tensor_of(self.problem.network, unit)
        # a group's own tensor lies in front of its quantizer: it does not change
        return (self._observed.descendants([tensor]) - {tensor}).intersection(self.candidates)

    def trials(self, task: Task, baseline: Baseline) -> list[Trial]:
        """Run one unit at several bit-widths, observed at those tensors of the task that it can reach."""
        problem, observed, unit = self.problem, self._observed, task.unit
        tensor_changed = tensor_of(problem.network, unit)
        seen = self.reached(unit).intersection((*task.xl, *task.ly))
        tensors = [tensor for tensor in self.candidates if tensor in seen]
        outputs = [observed.output, *(projection_name(tensor) for tensor in tensors)]
        variants = [_variant(problem, unit, b) for b in task.bits]
        fed = [name for name in variants[0] if name in observed.initializers]  # the weight, and perhaps the bias
        suffix = Suffix(observed, problem.network, tensor_changed, outputs, fed)
        batches = self.prefix.batches(tensor_changed, suffix.kept)
        parts = [suffix.run(count, kept, variants) for count, kept in batches]
        trials = []
        for index, b in enumerate(task.bits):
            logits, *projections = (np.concatenate(column) for column in zip(*(p[index] for p in parts), strict=True))
            deltas = {}
            for tensor, values in zip(tensors, projections, strict=True):
                xl = self._smi.xl(baseline.x, values) if tensor in task.xl else None
                ly = self._smi.ly(values) if tensor in task.ly else None
                deltas[tensor] = Delta(*_difference(baseline.xl[tensor], xl), *_difference(baseline.ly[tensor], ly))
            scores = logits.reshape(len(logits), -1).astype(np.float64)
            drop, kl = _harm(baseline.logits, scores, problem.labels)
            # sorted, as a trial is that comes back from the journal: sums over them must not depend on whence they come
            trials.append(Trial((Change(unit, b),), drop, kl, dict(sorted(deltas.items()))))
        return trials


def runner(state: tuple[Problem, Baseline, int, Spill | None]) -> Callable[[Task], list[Trial]]:
    """Make what runs tasks in a process of its own.

    Its state is the problem, its baseline, how many threads it may use, and where large activations go.
    """
    problem, baseline, threads, spill = state
    runtime = Runtime(problem.settings.provider, threads)
    jit.limit_threads(threads)
    with using(runtime):
        bench = Bench(problem, spill)

    def run(task: Task) -> list[Trial]:
        with using(runtime):
            return bench.trials(task, baseline)

    return run


def _projected(problem: Problem) -> Prepared:
    """X_E on the directions that all estimates share."""
    settings = problem.settings
    entropy = np.random.SeedSequence((settings.seed, 0, 0))
    matrix = directions(problem.encoded.shape[1], settings.projections, entropy)
    return prepare_projections(problem.encoded @ matrix, settings.seed)


class SmiEstimator:
    """Estimates SMI(X_E; L) and SMI(L; Y) from projections of L, always with the same samples, directions, jitter."""

    def __init__(self, problem: Problem) -> None:
        settings = problem.settings
        self._targets, self._k, self._seed = problem.targets, settings.neighbours, settings.seed

    def xl(self, x: Prepared, projections: npt.NDArray[np.float32]) -> Estimate:
        return smi_from_prepared(x, projections.astype(np.float64), self._k, self._seed)

    def ly(self, projections: npt.NDArray[np.float32]) -> Estimate:
        return smi_discrete_from_projections(projections.astype(np.float64), self._targets, self._k, self._seed)


def _difference(baseline: Estimate, trial: Estimate | None) -> tuple[float | None, float | None]:
    """Pair two estimates; where the trial's was not wanted, there is nothing to tell."""
    return (None, None) if trial is None else paired_difference(baseline.per_projection, trial.per_projection)


def _harm(baseline: Array, trial: Array, labels: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Drop of top-1 accuracy, and mean KL(baseline ‖ trial) of the predictive distributions in nats."""
    before, after = baseline.argmax(axis=1) == labels, trial.argmax(axis=1) == labels
    return float(before.mean() - after.mean()), float(np.mean(kl_divergence(baseline, trial)))


def _variant(problem: Problem, unit: Unit, bits: int) -> Variant:
    """Values of a unit's initializers at a bit-width."""
    if unit.kind == "activation":
        return grid_of_group(unit.name, problem.table.activations[unit.name][bits])
    layer = next(layer for layer in problem.network.layers if layer.name == unit.name)
    if layer.weight is None or layer.channel_axis is None:
        raise ValueError(f"{layer.name} has no weight")
    rounded = problem.rounded.get(layer.name)
    if rounded is not None:
        held = rounded[bits]
        variant: dict[str, npt.NDArray[np.generic]] = {
            layer.weight: dequantize_weight(held.codes, held.scales, layer.channel_axis)
        }
        if layer.bias is not None and held.bias is not None:
            variant[layer.bias] = held.bias.astype(np.float32)
        return variant
    scales = problem.table.weights[layer.name][bits]
    codes = quantize_weight(problem.graph.constant(layer.weight), scales, bits, layer.channel_axis)
    return {layer.weight: dequantize_weight(codes, scales, layer.channel_axis)}
