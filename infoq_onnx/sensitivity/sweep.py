"""The sweep: one unit at a time at low bits, everything else at the baseline, seen from the observers.

The baseline has 8-bit weights, and 8-bit activations are taken to be exact. Rounding every activation to 8 bits changes
next to nothing in the mean, but it is chaotic: a difference in the last place of one weight flips a code somewhere,
that flips more behind it, and logits end up half a percent of their spread apart. The scores of 4 to 8 bits would drown
in that noise, and one network exported twice would get two allocations (docs/methods.md has the figures). What a unit's
own quantizer does is measured in full.

Two stages. First the low-bit trials, seen by every candidate, decide which candidates become observers. Then the
remaining bit-widths are seen by the observers alone. A trial's samples and directions are the baseline's, so the noise
they have in common cancels in the differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.session import open_session
from infoq_onnx.quantize.codes import CodeTable
from infoq_onnx.quantize.grid import dequantize_weight, quantize_weight
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.schema import BASELINE_BITS, Delta, Kind, Network, Observer, SweepSettings, Trial
from infoq_onnx.sensitivity.estimators import (
    Estimate,
    paired_difference,
    prepare_projections,
    smi_discrete_from_projections,
    smi_from_prepared,
)
from infoq_onnx.sensitivity.estimators.sliced import directions
from infoq_onnx.sensitivity.journal import Journal
from infoq_onnx.sensitivity.observers import SELECTION_BITS, candidates, select
from infoq_onnx.sensitivity.projection import add_projections, projection_name
from infoq_onnx.simulate.batching import batch_size, run_batches
from infoq_onnx.simulate.divergence import kl_divergence
from infoq_onnx.simulate.insert import grid_of_group
from infoq_onnx.simulate.rerun import Rerun, Variant
from infoq_onnx.simulate.simulation import set_initializers

Array = npt.NDArray[np.float64]
Progress = Callable[[str, int, int], None]
"""Called as progress(what is being tried, trials done, trials in all)."""


@dataclass(frozen=True)
class Unit:
    """What one trial changes: a layer's weights or a group's activations."""

    name: str
    kind: Kind
    tensor: str
    """The weight's initializer, or the group's tensor."""


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
    settings: SweepSettings
    rounded: CodeTable
    """Weights by layer and bits, the baseline's included; a layer that is not in it is rounded to nearest."""


@dataclass(frozen=True)
class SweepResult:
    """What the sweep measured."""

    baseline_top1: float
    """Share of Y that the baseline predicts."""
    observers: tuple[Observer, ...]
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class _Baseline:
    """The baseline, seen from every candidate."""

    logits: Array
    xl: dict[str, Estimate]
    ly: dict[str, Estimate]


def units(network: Network, *, weight_only: bool = False) -> list[Unit]:
    """List every unit in topological order, weights before activations."""
    weights = [Unit(layer.name, "weight", layer.weight) for layer in network.layers if layer.weight is not None]
    if weight_only:
        return weights
    return weights + [Unit(group.name, "activation", group.name) for group in network.groups]


def trial_count(network: Network, settings: SweepSettings) -> int:
    """Number of trials of a whole sweep."""
    return len(units(network, weight_only=settings.weight_only)) * sum(b != BASELINE_BITS for b in settings.bits)


def sweep(problem: Problem, journal: Journal, progress: Progress) -> SweepResult:
    """Run every trial that the journal does not hold yet.

    Parameters
    ----------
    problem : what to measure
    journal : where finished trials are found and kept
    progress : called after each unit

    Returns
    -------
    SweepResult
        The same for a resumed sweep as for an uninterrupted one.
    """
    settings, network = problem.settings, problem.network
    tensors = candidates(problem.graph, network)
    eye = _Eye(problem)
    model = onnx.ModelProto()
    model.CopyFrom(problem.graph.model)
    for unit in units(network, weight_only=True):
        set_initializers(model, _variant(problem, unit, BASELINE_BITS))
    observed = Graph(add_projections(model, problem.graph, tensors, settings.projections, settings.seed))
    baseline = _measure_baseline(problem, observed, eye, tensors)

    trial_bits = [b for b in settings.bits if b != BASELINE_BITS]
    low = [b for b in trial_bits if b in SELECTION_BITS] or trial_bits
    rest = [b for b in trial_bits if b not in low]
    tried = units(network, weight_only=settings.weight_only)
    total, done = trial_count(network, settings), 0

    def run_stage(stage: str, bits: Sequence[int], seen: Sequence[str]) -> list[Trial]:
        nonlocal done
        found = []
        for unit in tried:
            keys = [(unit.name, unit.kind, b, stage) for b in bits]
            missing = [b for b, key in zip(bits, keys, strict=True) if key not in journal.trials]
            if missing:
                progress(unit.name, done, total)
                journal.add(stage, _try(problem, observed, eye, baseline, unit, missing, seen))
            found += [journal.trials[key] for key in keys]
            done += len(bits)
            progress(unit.name, done, total)
        return found

    low_trials = run_stage("select", low, tensors)
    observers = select(
        tensors,
        {tensor: baseline.xl[tensor].value for tensor in tensors},
        {tensor: baseline.ly[tensor].value for tensor in tensors},
        low_trials,
        settings.threshold,
        network.output,
    )
    selected = [observer.tensor for observer in observers if observer.selected_xl or observer.selected_ly]
    rest_trials = run_stage("score", rest, selected) if rest else []
    order = {(unit.kind, unit.name): index for index, unit in enumerate(tried)}
    trials = sorted([*low_trials, *rest_trials], key=lambda trial: (order[trial.kind, trial.unit], trial.bits))
    top1 = float(np.mean(baseline.logits.argmax(axis=1) == problem.labels))
    return SweepResult(top1, observers, tuple(trials))


class _Eye:
    """Estimates SMI(X_E; L) and SMI(L; Y) from projections of L, always with the same samples, directions, jitter."""

    def __init__(self, problem: Problem) -> None:
        settings = problem.settings
        self._targets, self._k, self._seed = problem.targets, settings.neighbours, settings.seed
        entropy = np.random.SeedSequence((settings.seed, 0, 0))
        matrix = directions(problem.encoded.shape[1], settings.projections, entropy)
        self._x = prepare_projections(problem.encoded @ matrix, self._seed)

    def xl(self, projections: npt.NDArray[np.float32]) -> Estimate:
        return smi_from_prepared(self._x, projections.astype(np.float64), self._k, self._seed)

    def ly(self, projections: npt.NDArray[np.float32]) -> Estimate:
        return smi_discrete_from_projections(projections.astype(np.float64), self._targets, self._k, self._seed)


def _measure_baseline(problem: Problem, observed: Graph, eye: _Eye, tensors: Sequence[str]) -> _Baseline:
    outputs = [observed.output, *(projection_name(tensor) for tensor in tensors)]
    session = open_session(observed.model)
    parts = [
        results for _, results in run_batches(session, observed, outputs, problem.dataset, batch_size(problem.graph))
    ]
    logits, *projections = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Baseline(
        logits.reshape(len(logits), -1).astype(np.float64),
        {tensor: eye.xl(values) for tensor, values in zip(tensors, projections, strict=True)},
        {tensor: eye.ly(values) for tensor, values in zip(tensors, projections, strict=True)},
    )


def _try(
    problem: Problem,
    observed: Graph,
    eye: _Eye,
    baseline: _Baseline,
    unit: Unit,
    bits: Sequence[int],
    seen: Sequence[str],
) -> list[Trial]:
    """Run one unit at several bit-widths, observed at those of `seen` that it can reach."""
    reached = observed.descendants([unit.tensor])
    # a group's own tensor lies in front of its quantizer: it does not change
    tensors = [tensor for tensor in seen if tensor in reached and tensor != unit.tensor]
    outputs = [observed.output, *(projection_name(tensor) for tensor in tensors)]
    variants = [_variant(problem, unit, b) for b in bits]
    fed = [name for name in variants[0] if name in observed.initializers]  # the weight, and perhaps the bias
    rerun = Rerun(observed, problem.network, unit.tensor, outputs, fed)
    parts = [rerun.run(batch, variants) for batch in problem.dataset.batches(batch_size(problem.graph))]
    trials = []
    for index, b in enumerate(bits):
        logits, *projections = (np.concatenate(column) for column in zip(*(p[index] for p in parts), strict=True))
        deltas = {}
        for tensor, values in zip(tensors, projections, strict=True):
            xl = paired_difference(baseline.xl[tensor].per_projection, eye.xl(values).per_projection)
            ly = paired_difference(baseline.ly[tensor].per_projection, eye.ly(values).per_projection)
            deltas[tensor] = Delta(*xl, *ly)
        scores = logits.reshape(len(logits), -1).astype(np.float64)
        drop, kl = _harm(baseline.logits, scores, problem.labels)
        # sorted, as a trial is that comes back from the journal: sums over them must not depend on where they come from
        deltas = dict(sorted(deltas.items()))
        trials.append(Trial(unit.name, unit.kind, b, drop, kl, deltas))
    return trials


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
