"""`plan`: count the trials of `analyze`, and estimate its time and memory from a probe."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.session import Runtime, open_session, using
from infoq_onnx.memory import peak
from infoq_onnx.pipeline.analyzing import set_up, settings_of
from infoq_onnx.preparation import Recipe, memory_bytes
from infoq_onnx.reporter import Reporter, Silent
from infoq_onnx.schema import MeasurementSettings, Plan, Preprocessing, tensor_of, typed, units_of
from infoq_onnx.sensitivity.blocks import positions, rounding_count
from infoq_onnx.sensitivity.estimators import prepare_projections, smi_discrete_from_projections, smi_from_prepared
from infoq_onnx.sensitivity.observers import candidates
from infoq_onnx.sensitivity.projection import add_projections
from infoq_onnx.sensitivity.sweep import stages, trial_count
from infoq_onnx.sensitivity.trials import Task
from infoq_onnx.sensitivity.work import work_of, workers_for
from infoq_onnx.simulate.rounding import get_rounding
from infoq_onnx.simulate.rounding.gather import most_bytes
from infoq_onnx.simulate.running.batching import batch_size, padded
from infoq_onnx.simulate.running.prefix import Prefix

PROBE_SECONDS = 10.0
"""Default duration of the probe, in seconds."""


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
    probe_seconds : duration of the probe that measures the speed of the network, in seconds
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
    prepared, everything, settings = set_up(model, calib, classes, preprocessing, given, reporter or Silent())
    blocks = positions(everything.labels, len(everything), settings.effort, settings.seed)
    dataset = everything.part(blocks[0])
    graph, network = prepared.graph, prepared.network
    low, rest = stages(settings)
    tried = units_of(network, weight_only=settings.weight_only)
    tasks = [Task(unit, tuple(widths)) for unit in tried for widths in (low, rest) if widths]
    # the time of the estimates is measured separately
    prefix = Prefix(graph, network, dataset)
    work = sum(work_of(graph, network, prefix, tasks, estimates=False))
    whole = sum(layer.macs for layer in network.layers)
    count = workers_for(work * len(dataset)) if workers == "auto" else workers or 1

    tensors = candidates(graph, network)
    observed = Graph(add_projections(graph.model, graph, tensors, settings.projections, settings.seed))
    with using(Runtime(settings.provider)):
        rate = _images_a_second(observed, graph, dataset, probe_seconds)
    each = estimate_seconds(len(dataset), settings)
    # the network and both estimates have run by now, so the peak memory is that of a trial
    took = peak()
    # with a memory limit, the activations go to files
    carried = 0 if allowed is not None else prefix.most_bytes()
    if allowed is not None:
        count = min(count, max(1, allowed // took - 1))
    reached = {unit: graph.descendants([tensor_of(network, unit)]) for unit in tried}
    looks = len(low) * sum(tensor in reached[unit] for unit in tried for tensor in tensors)
    # in each stage, every process runs the network upstream of the units once
    passes = (work + count * sum(map(bool, (low, rest))) * prefix.macs_to_carry()) / whole
    # layers are rounded one after the other, in one process, before any trial
    rounding = 0
    if get_rounding(settings.trial_rounding).reads_images:
        rounding = most_bytes(graph, network, rounding_count(len(everything), settings.effort))
    trials = took + carried if count == 1 else took + count * (took + carried)
    return Plan(
        images=len(dataset),
        most_images=sum(map(len, blocks)),
        trials=trial_count(network, settings),
        passes=passes,
        workers=count,
        images_a_second=rate,
        seconds=passes * len(dataset) / rate + looks * each,
        bytes=float(max(took + carried + rounding, trials)),
    )


def _images_a_second(observed: Graph, graph: Graph, dataset: Dataset, wanted: float) -> float:
    """Return the images per second of the network, from a run of `wanted` seconds or four passes over all images."""
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
