"""The sweep: trials of every unit at every bit-width.

The sweep has two stages. In the first stage, all candidates observe the low-bit trials, and the observers are selected.
In the second stage, only the selected observers, or all candidates if requested, observe the remaining bit-widths. If
mutual information is not measured, there is only one stage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from infoq_onnx.execute import Executor
from infoq_onnx.execute.cluster import Distributed
from infoq_onnx.execute.processes import Processes
from infoq_onnx.execute.resources import Resources
from infoq_onnx.execute.serial import Serial
from infoq_onnx.graph.session import processors
from infoq_onnx.memory import peak, resident
from infoq_onnx.schema import (
    BASELINE_BITS,
    Candidate,
    Change,
    MeasurementSettings,
    Network,
    Trial,
    Unit,
    tensor_of,
    units_of,
)
from infoq_onnx.sensitivity.journal import Journal, Key
from infoq_onnx.sensitivity.observers import THRESHOLD, select, selection_bits
from infoq_onnx.sensitivity.trials import Bench, Problem, Task, runner
from infoq_onnx.sensitivity.work import work_of, workers_for
from infoq_onnx.simulate.running.spill import Spill

SPARSE_BITS = (2, 3, 4, 6)
"""Bit-widths that are tried below full effort, if they are among those of the settings. Pooled criteria interpolate."""

Progress = Callable[[str, int, int, float], None]
"""Called as progress(name of the last unit tried, trials done, total trials, share of the work done)."""


Seeing = tuple[tuple[str, ...], tuple[str, ...]]
"""Candidates observed for SMI(X_E; L), and candidates observed for SMI(L; Y)."""


@dataclass(frozen=True)
class SweepResult:
    """The measurements of a sweep."""

    baseline_top1: float
    """Share of images for which the baseline predicts the label."""
    candidates: tuple[Candidate, ...]
    trials: tuple[Trial, ...]
    seeing: Seeing
    """Observers of the second stage."""


def trial_count(network: Network, settings: MeasurementSettings) -> int:
    """Return the number of trials of a complete sweep."""
    return len(units_of(network, weight_only=settings.weight_only)) * sum(map(len, stages(settings)))


def stages(settings: MeasurementSettings) -> tuple[list[int], list[int]]:
    """Return the bit-widths of the first stage, observed by all candidates, and of the second stage."""
    low = selection_bits(settings.bits)
    rest = [b for b in settings.bits if b != BASELINE_BITS and b not in low]
    if settings.effort != "full":
        rest = [b for b in rest if b in SPARSE_BITS]
    return ([*low, *rest], []) if settings.observing == "none" else (low, rest)


def tried_bits(settings: MeasurementSettings) -> list[int]:
    """Return the bit-widths of trials, in ascending order."""
    return sorted(itertools.chain.from_iterable(stages(settings)))


def sweep(
    problem: Problem,
    journal: Journal,
    progress: Progress,
    resources: Resources | None = None,
    seeing: Seeing | None = None,
) -> SweepResult:
    """Run every trial that the journal does not contain yet.

    Parameters
    ----------
    problem : the network, images and settings to measure with
    journal : holds finished trials and receives new ones
    progress : called after each unit
    resources : workers, memory and cluster to use; None: the defaults
    seeing : observers of the second stage; None: those selected by the first stage

    Returns
    -------
    SweepResult
        Identical for resumed and uninterrupted sweeps, for any number of workers, and on a cluster.
    """
    resources = resources or Resources()
    settings, network = problem.settings, problem.network
    spill = None if resources.memory is None else Spill(journal.folder, 0)
    bench = Bench(problem, spill)
    baseline = bench.baseline()
    low, rest = stages(settings)
    tried = units_of(network, weight_only=settings.weight_only)
    reached = {unit: bench.reached(unit) for unit in tried}

    # activations upstream of a unit are reused for the next unit, so units are tried in the order of the graph
    ordered = sorted(tried, key=lambda unit: bench.prefix.position(tensor_of(network, unit)))

    def is_missing(unit: Unit, bits: int, xl: Sequence[str], ly: Sequence[str]) -> bool:
        trial = journal.trials.get((Change(unit, bits),))
        # older versions did not measure soft divergences
        if trial is None or not trial.soft_kl:
            return True
        told_xl = {tensor for tensor, delta in trial.deltas.items() if delta.xl is not None}
        told_ly = {tensor for tensor, delta in trial.deltas.items() if delta.ly is not None}
        return not (reached[unit].intersection(xl) <= told_xl and reached[unit].intersection(ly) <= told_ly)

    def missing(bits: Sequence[int], xl: Sequence[str], ly: Sequence[str]) -> list[Task]:
        wanted = [(unit, [b for b in bits if is_missing(unit, b, xl, ly)]) for unit in ordered]
        return [Task(unit, tuple(left), tuple(xl), tuple(ly)) for unit, left in wanted if left]

    def work(tasks: Sequence[Task]) -> list[float]:
        return work_of(problem.graph, network, bench.prefix, tasks)

    whole = sum(work([Task(unit, tuple(bits)) for unit in tried for bits in (low, rest) if bits]))
    # the observers of the second stage are not known yet, so none are requested here
    later = sum(work(missing(rest, (), ())))
    total = len(tried) * (len(low) + len(rest))
    wanted_keys = {(Change(unit, b),) for unit in tried for b in (*low, *rest)}

    def done() -> int:
        return len(wanted_keys & journal.trials.keys())

    def run_stage(executor: Executor[Task, list[Trial]], tasks: list[Task], later: float) -> None:
        costs = work(tasks)
        left = later + sum(costs)
        for index, trials in executor.run(tasks):
            journal.add(trials)
            left -= costs[index]
            progress(tasks[index].unit.name, done(), total, 1 - left / whole)

    def keys(bits: Sequence[int]) -> list[Key]:
        return [(Change(unit, b),) for unit in tried for b in bits]

    everybody = (bench.candidates, bench.candidates)
    tasks = missing(low, *everybody)
    left = later + sum(work(tasks))
    progress("", done(), total, 1 - left / whole)
    workers = resources.workers or workers_for(left * len(problem.dataset))
    if resources.memory is not None and resident() + peak() > resources.memory:
        # another process would use about as much memory as this one
        workers = 1
    candidates = tuple(
        Candidate(tensor, baseline.xl[tensor].value, baseline.ly[tensor].value) for tensor in bench.candidates
    )
    with contextlib.ExitStack() as stack:
        executor: Executor[Task, list[Trial]]
        sent = dataclasses.replace(problem, dataset=problem.dataset.alone())
        if (cluster := resources.cluster) is not None:
            executor = stack.enter_context(Distributed(runner, (sent, baseline, cluster.threads, None), cluster))
        elif workers == 1:
            executor = Serial(lambda task: bench.trials(task, baseline))
        else:
            state = (sent, baseline, max(1, processors() // workers), spill)
            executor = stack.enter_context(Processes(runner, state, workers, journal.folder, resources.memory))
        run_stage(executor, tasks, later)
        if settings.observing == "all":
            seeing = everybody
        if seeing is None:
            chosen = select(candidates, [journal.trials[key] for key in keys(low)], THRESHOLD, network.output)
            seeing = (
                tuple(observer.tensor for observer in chosen if observer.selected_xl),
                tuple(observer.tensor for observer in chosen if observer.selected_ly),
            )
        run_stage(executor, missing(rest, *seeing), 0)
    journal.settle(keys(sorted({*low, *rest})))
    top1 = float(np.mean(baseline.logits.argmax(axis=1) == problem.labels))
    return SweepResult(top1, candidates, tuple(journal.trials.values()), seeing)
