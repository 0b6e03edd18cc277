"""Trials: one unit at fewer bits and all other units at the baseline, measured at the observers.

The baseline has 8-bit weights and treats 8-bit activations as exact. Rounding all activations to 8 bits changes almost
nothing on average, but the rounding is chaotic. A difference in the last place of one weight flips a code, the flip
propagates, and the logits end up half a percent of their spread apart. This noise would mask the scores of 4 to 8 bits,
and the same network exported twice would get two allocations (see docs/methods.md for figures). The effect of a unit's
own quantizer is measured in full.

A trial uses the same samples and directions as the baseline, so the common noise cancels in the differences.
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
from infoq_onnx.simulate.running.divergence import TEMPERATURE, kl_divergence
from infoq_onnx.simulate.running.prefix import Prefix
from infoq_onnx.simulate.running.spill import Spill
from infoq_onnx.simulate.running.suffix import Suffix, Variant

Array = npt.NDArray[np.float64]

GROUPS = 16
"""Number of groups of images whose divergences are kept, to tell noise from what differs between bit-widths."""


@dataclass(frozen=True)
class Problem:
    """All inputs of a sweep."""

    graph: Graph
    """The normalised float graph."""
    network: Network
    table: GridTable
    dataset: Dataset
    labels: npt.NDArray[np.int64]
    """Reference for top-1 accuracy [N]: the true labels, or the float model's predictions if there are none."""
    targets: npt.NDArray[np.int64]
    """Y of SMI(L; Y) [N]: the labels, or groups that replace them."""
    encoded: Array
    """Encoded inputs X_E [N, e]."""
    settings: MeasurementSettings
    rounded: CodeTable
    """Rounded weights by layer and bits, including the baseline's. A layer not in the table is rounded to nearest."""


@dataclass(frozen=True)
class Task:
    """One piece of work for a process: the trials of one unit at several bit-widths."""

    unit: Unit
    bits: tuple[int, ...]
    xl: tuple[str, ...] = ()
    """Candidates at which to estimate SMI(X_E; L)."""
    ly: tuple[str, ...] = ()
    """Candidates at which to estimate SMI(L; Y)."""


@dataclass(frozen=True)
class Baseline:
    """The baseline, measured at every candidate."""

    logits: Array
    """Logits [N, C]."""
    x: Prepared | None
    """Projections of X_E, computed once because a matrix product can depend on the number of threads; None if mutual
    information is not measured."""
    xl: dict[str, Estimate]
    """SMI(X_E; L) by candidate."""
    ly: dict[str, Estimate]
    """SMI(L; Y) by candidate."""


class Bench:
    """The baseline network with its candidate observers, ready for trials.

    Attributes
    ----------
    observed : Graph
        The baseline network, with the projections of the candidates as outputs.
    """

    def __init__(self, problem: Problem, spill: Spill | None = None) -> None:
        """Build the network for a problem. Activations that would take too much memory go to `spill`."""
        self.problem = problem
        observed = problem.settings.observing != "none"
        self.candidates = candidates(problem.graph, problem.network) if observed else ()
        self._smi = SmiEstimator(problem)
        graph, settings = baseline_graph(problem), problem.settings
        self.prefix = Prefix(graph, problem.network, problem.dataset, spill)
        self.observed = Graph(
            add_projections(graph.model, problem.graph, self.candidates, settings.projections, settings.seed)
        )

    def baseline(self) -> Baseline:
        """Measure the baseline.

        Returns
        -------
        Baseline

        Raises
        ------
        ModelError
            An observed tensor has values that are too large to be projected in float32.
        """
        outputs = [self.observed.output, *(projection_name(tensor) for tensor in self.candidates)]
        opened = open_session(self.observed.model)
        size = batch_size(self.problem.graph)
        batches = run_batches(opened, self.observed, outputs, self.problem.dataset, size)
        logits, *projections = (np.concatenate(column) for column in zip(*(r for _, r in batches), strict=True))
        named = list(zip(self.candidates, projections, strict=True))
        for tensor, values in named:
            if not np.isfinite(values).all():
                raise ModelError(
                    f"{tensor} holds values so large that sums of them exceed float32, with 8-bit weights; scale the "
                    "weights or the inputs, or check the preprocessing"
                )
        x = _projected(self.problem) if named else None
        return Baseline(
            logits.reshape(len(logits), -1).astype(np.float64),
            x,
            {tensor: self._smi.xl(x, values) for tensor, values in named if x is not None},
            {tensor: self._smi.ly(values) for tensor, values in named},
        )

    def reached(self, unit: Unit) -> set[str]:
        """Return the candidates that a unit can change."""
        tensor = tensor_of(self.problem.network, unit)
        # a group's own tensor is upstream of its quantizer and does not change
        return (self.observed.descendants([tensor]) - {tensor}).intersection(self.candidates)

    def ready(self, task: Task) -> tuple[Suffix, list[Variant], list[str]]:
        """Return the network behind a task's unit, the unit's values at each bit-width, and the tensors it observes."""
        problem, observed = self.problem, self.observed
        seen = self.reached(task.unit).intersection((*task.xl, *task.ly))
        tensors = [tensor for tensor in self.candidates if tensor in seen]
        outputs = [observed.output, *(projection_name(tensor) for tensor in tensors)]
        variants = [variant_of(problem, task.unit, b) for b in task.bits]
        fed = [name for name in variants[0] if name in observed.initializers]  # the weight, and perhaps the bias
        changed = tensor_of(problem.network, task.unit)
        return Suffix(observed, problem.network, changed, outputs, fed), variants, tensors

    def trials(self, task: Task, baseline: Baseline) -> list[Trial]:
        """Run the trials of a task, observed at the tensors of the task that the unit can reach."""
        problem, unit = self.problem, task.unit
        suffix, variants, tensors = self.ready(task)
        batches = self.prefix.batches(tensor_of(problem.network, unit), suffix.kept)
        parts = [suffix.run(count, kept, variants) for count, kept in batches]
        trials = []
        for index, b in enumerate(task.bits):
            logits, *projections = (np.concatenate(column) for column in zip(*(p[index] for p in parts), strict=True))
            deltas = {}
            for tensor, values in zip(tensors, projections, strict=True):
                xl = self._smi.xl(baseline.x, values) if tensor in task.xl and baseline.x is not None else None
                ly = self._smi.ly(values) if tensor in task.ly else None
                deltas[tensor] = Delta(*_difference(baseline.xl[tensor], xl), *_difference(baseline.ly[tensor], ly))
            scores = logits.reshape(len(logits), -1).astype(np.float64)
            changes = (Change(unit, b),)
            # sorted, as in trials read from the journal: sums over the differences must not depend on the source
            trials.append(_trial(changes, baseline.logits, scores, problem.labels, dict(sorted(deltas.items()))))
        return trials


def runner(state: tuple[Problem, Baseline, int, Spill | None]) -> Callable[[Task], list[Trial]]:
    """Return the function that runs tasks in a worker process.

    Parameters
    ----------
    state : the problem, its baseline, the number of threads to use, and the spill for large activations

    Returns
    -------
    callable
        Takes a `Task` and returns its trials.
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
    """Project X_E on the directions that all estimates share."""
    settings = problem.settings
    entropy = np.random.SeedSequence((settings.seed, 0, 0))
    matrix = directions(problem.encoded.shape[1], settings.projections, entropy)
    return prepare_projections(problem.encoded @ matrix, settings.seed)


class SmiEstimator:
    """Estimator of SMI(X_E; L) and SMI(L; Y) from projections of L, with fixed samples, directions and jitter."""

    def __init__(self, problem: Problem) -> None:
        settings = problem.settings
        self._targets, self._k, self._seed = problem.targets, settings.neighbours, settings.seed

    def xl(self, x: Prepared, projections: npt.NDArray[np.float32]) -> Estimate:
        return smi_from_prepared(x, projections.astype(np.float64), self._k, self._seed)

    def ly(self, projections: npt.NDArray[np.float32]) -> Estimate:
        return smi_discrete_from_projections(projections.astype(np.float64), self._targets, self._k, self._seed)


def _difference(baseline: Estimate, trial: Estimate | None) -> tuple[float | None, float | None]:
    """Return baseline minus trial and its standard error; (None, None) without an estimate for the trial."""
    return (None, None) if trial is None else paired_difference(baseline.per_projection, trial.per_projection)


def _trial(
    changes: tuple[Change, ...],
    baseline: Array,
    trial: Array,
    labels: npt.NDArray[np.int64],
    deltas: dict[str, Delta],
) -> Trial:
    """Compare the logits [N, C] of a trial with those of the baseline."""
    before, after = baseline.argmax(axis=1) == labels, trial.argmax(axis=1) == labels
    kl, soft = (kl_divergence(baseline, trial, temperature) for temperature in (1.0, TEMPERATURE))
    # images are sorted by class, so that every group gets images of all classes
    groups = [soft[first::GROUPS] for first in range(min(GROUPS, len(soft)))]
    return Trial(
        changes,
        float(before.mean() - after.mean()),
        float(kl.mean()),
        deltas,
        float(kl.std(ddof=1) / np.sqrt(len(kl))),
        tuple(float(group.mean()) for group in groups),
    )


def baseline_graph(problem: Problem) -> Graph:
    """Return the baseline: the network with 8-bit weights and exact activations."""
    values: dict[str, npt.NDArray[np.generic]] = {}
    for unit in units_of(problem.network, weight_only=True):
        values.update(variant_of(problem, unit, BASELINE_BITS))
    return Graph(with_initializers(problem.graph.model, values))


def variant_of(problem: Problem, unit: Unit, bits: int) -> Variant:
    """Return the values of a unit's initializers at a bit-width."""
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
