"""`plan`: count the trials of `analyze`, and estimate its time and memory from probes."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.session import Runtime, open_session, processors, using
from infoq_onnx.memory import forget_peak, peak, resident
from infoq_onnx.pipeline import probing
from infoq_onnx.pipeline.analyzing import set_up, settings_of
from infoq_onnx.preparation import Recipe, memory_bytes
from infoq_onnx.reporter import Reporter, Silent
from infoq_onnx.schema import BASELINE_BITS, MeasurementSettings, Plan, Preprocessing, typed, units_of
from infoq_onnx.sensitivity.blocks import positions, rounding_count
from infoq_onnx.sensitivity.estimators import prepare_projections, smi_discrete_from_projections, smi_from_prepared
from infoq_onnx.sensitivity.sweep import stages, trial_count, tried_bits
from infoq_onnx.sensitivity.trials import Bench, Problem, Task
from infoq_onnx.sensitivity.work import work_of, workers_for
from infoq_onnx.simulate.rounding import get_rounding
from infoq_onnx.simulate.rounding.layerwise import most_bytes
from infoq_onnx.simulate.running.batching import batch_size, padded
from infoq_onnx.simulate.running.prefix import Prefix

PROBE_SECONDS = 5.0
"""Default duration of the probe of the network's speed, in seconds."""
_STARTING = 2.0
"""Seconds until worker processes run."""


@typed
def plan(
    model: Path | str,
    calib: Path | str,
    settings: MeasurementSettings | None = None,
    *,
    classes: Path | str | None = None,
    preprocessing: str | Recipe | Preprocessing | None = None,
    workers: int | Literal["auto"] | None = None,
    memory: str | int | None = None,
    ray: str | None = None,  # noqa: ARG001
    probe_seconds: float = PROBE_SECONDS,
    reporter: Reporter | None = None,
    **changes: Any,
) -> Plan:
    """Count the trials of an analysis, and estimate its time and memory, without running it.

    Parameters
    ----------
    model, calib, settings, classes, preprocessing, workers, memory, changes : see `analyze`
    ray : accepted as in `analyze` and ignored; time and memory are those without a cluster
    probe_seconds : duration of the probe that measures the speed of the network, in seconds; the other probes together
        take seconds for small networks, and up to two minutes for large ones
    reporter : receives remarks

    Returns
    -------
    Plan

    Raises
    ------
    InfoQError
        The errors that `analyze` would raise before its first trial.
    """
    given = settings_of(settings, changes)
    allowed = memory_bytes(memory)
    forget_peak()
    begun = time.monotonic()
    prepared, everything, settings = set_up(model, calib, classes, preprocessing, given, reporter or Silent())
    setting_up, started = time.monotonic() - begun, resident()
    blocks = positions(everything.labels, len(everything), settings.effort, settings.seed)
    dataset = everything.part(blocks[0])
    with using(Runtime(settings.provider)):
        ranging, seen, grids = probing.ranges(prepared, everything, settings)
        graph, network = seen.prepared.graph, seen.prepared.network
        rounding, gathered, ranged = 0.0, 0, resident()
        if get_rounding(settings.trial_rounding).reads_images:
            used = probing.first(everything, rounding_count(len(everything), settings.effort))
            rounding = probing.rounding(graph, network, used, [*tried_bits(settings), BASELINE_BITS])
            gathered = most_bytes(graph, network, used, spilled=allowed is not None)
        rounded = max(ranged, resident())
        few = probing.first(everything, probing.MORE)
        problem = Problem(graph, network, grids, few, seen.labels, seen.targets, seen.encoded, settings, {})
        bench = Bench(problem)
        took = peak()
        tried = units_of(network, weight_only=settings.weight_only)
        runs = [widths for widths in stages(settings) if widths]
        tasks = [Task(unit, tuple(widths)) for unit in tried for widths in runs]
        prefix = Prefix(graph, network, dataset)
        # the time of the estimates is measured separately
        work, with_estimates = (
            sum(work_of(graph, network, prefix, tasks, estimates=counted)) for counted in (False, True)
        )
        count = workers_for(with_estimates * len(dataset)) if workers == "auto" else workers or 1
        if allowed is not None:
            count = min(count, max(1, allowed // took - 1))
        # each process has its share of the processors
        with using(Runtime(settings.provider, max(1, processors() // count))):
            rate = _images_a_second(bench.observed, graph, dataset, probe_seconds)
            trying_bytes = probing.trying_bytes(bench, dataset, spilled=allowed is not None)
        opening = probing.trials(problem, count, len(runs))
    reached = {unit: bench.reached(unit) for unit in tried}
    looks = len(runs[0]) * sum(tensor in reached[unit] for unit in tried for tensor in bench.candidates)
    estimating = looks * estimate_seconds(len(dataset), settings) if looks else 0.0
    # in each stage, every process runs the network upstream of the units once
    rate *= count
    passes = (work + count * len(runs) * prefix.macs_to_carry()) / sum(layer.macs for layer in network.layers)
    trying = passes * len(dataset) / rate + estimating + opening + (_STARTING if count > 1 else 0.0)
    # every process has the libraries and the network, and reads images from a file that all share
    alone = started - everything.kept_bytes
    trials = rounded + (trying_bytes if count == 1 else count * (alone + trying_bytes))
    return Plan(
        images=len(dataset),
        most_images=sum(map(len, blocks)),
        trials=trial_count(network, settings),
        passes=passes,
        workers=count,
        images_a_second=rate,
        ranges_seconds=setting_up + ranging,
        rounding_seconds=rounding,
        trials_seconds=trying,
        bytes=float(max(took, ranged + gathered, trials)),
    )


def _images_a_second(observed: Graph, graph: Graph, dataset: Dataset, wanted: float) -> float:
    """Run the network for `wanted` seconds, or four times over all images: the images per second."""
    session, size = open_session(observed.model), batch_size(graph)
    batches = itertools.chain.from_iterable(dataset.batches(size) for _ in range(4))
    images, passed, begun = 0, 0.0, time.monotonic()
    for batch in batches:
        session.run(list(observed.outputs), {graph.input: padded(batch, graph.batch)})
        images, passed = images + len(batch), time.monotonic() - begun
        if passed >= wanted:
            break
    return images / passed


def estimate_seconds(count: int, settings: MeasurementSettings) -> float:
    """Return the seconds that both estimates at one observer take, measured on `count` samples of noise."""
    random = np.random.default_rng(0)
    values = random.standard_normal((count, settings.projections))
    x, labels = prepare_projections(values), random.integers(0, 2, count)
    for _ in range(2):
        # the first call may compile the kernels, so the second is timed
        begun = time.monotonic()
        smi_from_prepared(x, values, settings.neighbours)
        smi_discrete_from_projections(values, labels, settings.neighbours)
    return time.monotonic() - begun
