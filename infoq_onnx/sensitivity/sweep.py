"""The sweep: every unit at every width.

Two stages. First the low-bit trials, seen by every candidate, decide which candidates become observers. Then the
remaining bit-widths are seen by the observers alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
from infoq_onnx.schema import BASELINE_BITS, Network, Observer, SweepSettings, Trial
from infoq_onnx.sensitivity.journal import Journal, Key
from infoq_onnx.sensitivity.observers import SELECTION_BITS, select
from infoq_onnx.sensitivity.trials import Bench, Problem, Task, runner, units
from infoq_onnx.sensitivity.work import work_of, workers_for
from infoq_onnx.simulate.spill import Spill

Progress = Callable[[str, int, int, float], None]
"""Called as progress(what was tried last, trials done, trials in all, share of the work that is behind)."""


@dataclass(frozen=True)
class SweepResult:
    """What the sweep measured."""

    baseline_top1: float
    """Share of Y that the baseline predicts."""
    observers: tuple[Observer, ...]
    trials: tuple[Trial, ...]


def trial_count(network: Network, settings: SweepSettings) -> int:
    """Number of trials of a whole sweep."""
    return len(units(network, weight_only=settings.weight_only)) * sum(b != BASELINE_BITS for b in settings.bits)


def stages(settings: SweepSettings) -> tuple[list[int], list[int]]:
    """Bit-widths of the first stage, which all candidates see, and of the second."""
    bits = [b for b in settings.bits if b != BASELINE_BITS]
    low = [b for b in bits if b in SELECTION_BITS] or bits
    return low, [b for b in bits if b not in low]


def sweep(problem: Problem, journal: Journal, progress: Progress, resources: Resources | None = None) -> SweepResult:
    """Run every trial that the journal does not hold yet.

    Parameters
    ----------
    problem : what to measure
    journal : where finished trials are found and kept
    progress : called after each unit
    resources : what it may use

    Returns
    -------
    SweepResult
        The same for a resumed sweep as for an uninterrupted one, for any number of workers, and on a cluster.
    """
    resources = resources or Resources()
    settings, network = problem.settings, problem.network
    spill = None if resources.memory is None else Spill(journal.folder, 0)
    bench = Bench(problem, spill)
    baseline = bench.baseline()
    low, rest = stages(settings)
    tried = units(network, weight_only=settings.weight_only)
    total = trial_count(network, settings)

    # what lies in front of units is carried along from one to the next
    ordered = sorted(tried, key=lambda unit: bench.front.position(unit.tensor))

    def missing(stage: str, bits: Sequence[int], xl: Sequence[str] = (), ly: Sequence[str] = ()) -> list[Task]:
        wanted = [
            (unit, [b for b in bits if (unit.name, unit.kind, b, stage) not in journal.trials]) for unit in ordered
        ]
        return [Task(unit, tuple(left), tuple(xl), tuple(ly)) for unit, left in wanted if left]

    def work(tasks: Sequence[Task]) -> list[float]:
        return work_of(problem.graph, network, bench.front, tasks)

    whole = sum(work([Task(unit, tuple(bits)) for unit in tried for bits in (low, rest) if bits]))
    later = sum(work(missing("score", rest)))

    def run_stage(executor: Executor[Task, list[Trial]], stage: str, tasks: list[Task], later: float) -> None:
        costs = work(tasks)
        left = later + sum(costs)
        for index, trials in executor.run(tasks):
            journal.add(stage, trials)
            left -= costs[index]
            progress(tasks[index].unit.name, len(journal.trials), total, 1 - left / whole)

    def keys(stage: str, bits: Sequence[int]) -> list[Key]:
        return [(unit.name, unit.kind, b, stage) for unit in tried for b in bits]

    tasks = missing("select", low, bench.candidates, bench.candidates)
    left = later + sum(work(tasks))
    progress("", len(journal.trials), total, 1 - left / whole)
    workers = resources.workers or workers_for(left * len(problem.dataset))
    if resources.memory is not None and resident() + peak() > resources.memory:
        # another process would come to take about as much as this one has taken
        workers = 1
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
        run_stage(executor, "select", tasks, later)
        observers = select(
            bench.candidates,
            {tensor: baseline.xl[tensor].value for tensor in bench.candidates},
            {tensor: baseline.ly[tensor].value for tensor in bench.candidates},
            [journal.trials[key] for key in keys("select", low)],
            settings.threshold,
            network.output,
        )
        xl = [observer.tensor for observer in observers if observer.selected_xl]
        ly = [observer.tensor for observer in observers if observer.selected_ly]
        run_stage(executor, "score", missing("score", rest, xl, ly), 0)
    journal.settle([*keys("select", low), *keys("score", rest)])
    order = {(unit.kind, unit.name): index for index, unit in enumerate(tried)}
    trials = sorted(journal.trials.values(), key=lambda trial: (order[trial.kind, trial.unit], trial.bits))
    top1 = float(np.mean(baseline.logits.argmax(axis=1) == problem.labels))
    return SweepResult(top1, observers, tuple(trials))
