"""What an analysis of ResNet50 would cost on many workers: its pieces measured on one thread each, and put together.

    python benchmarks/scaling.py --images 6000 --workers 1,8,64

prints the figures of docs/scaling.md. Weights are random: they decide nothing about time. Trials are timed on a few
units, on one batch, and scaled by their multiply-accumulates; estimates on noise; rounding with few images.
Times are the processor's, whatever else runs beside it. Rounding takes half an hour.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from infoq_onnx import jit
from infoq_onnx.graph import session
from infoq_onnx.graph.graph import Graph
from infoq_onnx.pipeline.planning import estimate_seconds
from infoq_onnx.schema import BITS, MeasurementSettings, tensor_of, units_of
from infoq_onnx.sensitivity.observers import candidates
from infoq_onnx.sensitivity.projection import add_projections, projection_name
from infoq_onnx.sensitivity.sweep import stages, trial_count
from infoq_onnx.sensitivity.trials import Task
from infoq_onnx.sensitivity.work import work_of
from infoq_onnx.simulate.rounding.layerwise import round_layerwise
from infoq_onnx.simulate.running.batching import batch_size
from infoq_onnx.simulate.running.prefix import Prefix
from infoq_onnx.simulate.running.suffix import Suffix

ROUNDED = 16
"""Images that rounding is timed with; what it does with each is counted as passes."""
TRIED = 6
PASSES = 8
"""Whole passes over the images before the first trial: logits, ranges (2), factors, rounding (3), the baseline."""
OBSERVERS = 2
"""Candidates that become observers, about as many as on real models."""


def seconds(work: Callable[[], object]) -> float:
    """Of the processor: whatever else runs beside it."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--workers", default="1,8,64")
    parser.add_argument("--rounding", type=float, help="seconds of rounding, where they are known")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    with session.using(session.Runtime(threads=1)):
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Measure on one thread, and print."""
    from tests.networks import resnet50
    from tests.prepared import dataset_of, images, searched

    jit.limit_threads(1)
    count = arguments.images
    graph, network, _ = searched(resnet50())
    settings = MeasurementSettings(count, effort="full")
    tensors = candidates(graph, network)
    observed = Graph(add_projections(graph.model, graph, tensors, settings.projections, settings.seed))
    low, rest = stages(settings)
    tried = units_of(network)
    tasks = [Task(unit, tuple(widths)) for unit in tried for widths in (low, rest)]
    batch = images(network.input_shape, batch_size(graph))
    prefix = Prefix(graph, network, dataset_of(batch))
    all_images = dataclasses.replace(dataset_of(batch), indices=np.zeros(count, np.int64))
    whole_prefix = Prefix(graph, network, all_images)

    def timed(task: Task) -> float:
        """Seconds an image."""
        layer = next(layer for layer in network.layers if layer.name == task.unit.name)
        tensor = tensor_of(network, task.unit)
        reached = observed.descendants([tensor])
        outputs = [observed.output, *(projection_name(seen) for seen in tensors if seen in reached)]
        fed = [str(layer.weight), *([layer.bias] if layer.bias else [])]
        suffix = Suffix(observed, network, tensor, outputs, fed)
        ((_, kept),) = prefix.batches(tensor, suffix.kept)
        variants: list[dict[str, Any]] = [{name: graph.constant(name) for name in fed}] * len(task.bits)
        suffix.run(len(batch), kept, variants[:1])
        return seconds(lambda: suffix.run(len(batch), kept, variants)) / len(batch)

    work = work_of(graph, network, whole_prefix, tasks, estimates=False)
    weighted = [index for index, task in enumerate(tasks) if task.unit.kind == "weight" and task.bits == tuple(low)]
    chosen = [weighted[i] for i in np.linspace(0, len(weighted) - 1, TRIED).astype(int)]
    took = [(tasks[index], work[index], timed(tasks[index])) for index in chosen]
    rate = sum(macs for _, macs, _ in took) / sum(spent for *_, spent in took)
    whole = sum(layer.macs for layer in network.layers)
    inference = sum(work) / rate * count
    # what lies in front of units, once a stage; what is too large to be carried is in the tasks' own work
    carried = 2 * whole_prefix.macs_to_carry() / rate * count

    reached = {unit: observed.descendants([tensor_of(network, unit)]) for unit in tried}
    seen = sum(tensor in reached[unit] for unit in tried for tensor in tensors)
    looks = len(low) * seen + len(rest) * OBSERVERS * len(tried)
    # it looks twice, as the first time may compile
    estimates = looks * seconds(lambda: estimate_seconds(count, settings)) / 2

    rounding = arguments.rounding
    if rounding is None:
        dataset = dataset_of(images(network.input_shape, ROUNDED))
        rounding = seconds(lambda: round_layerwise(graph, network, dataset, BITS, lambda *_: None))
    driver = rounding + PASSES * whole / rate * count

    trials = trial_count(network, settings)
    print(f"{len(network.layers)} layers, {len(tried)} units, {trials} trials, {len(tasks)} tasks, {looks} estimates")
    print(f"trials: {sum(work) / whole:.0f} whole passes over the images, {rate / 1e9:.1f} GMAC a second")
    for task, macs, spent in took:
        print(f"  {task.unit.name}: {macs / 1e9:.2f} G, {1e3 * spent:.0f} ms an image for {len(task.bits)} widths")
    print(f"inference {inference / 3600:.1f} h, estimates {estimates / 3600:.1f} h; carried {carried / 3600:.2f} h")
    print(f"rounding: {rounding:.0f} s")
    print(f"before the first trial: {driver / 3600:.2f} h")
    for workers in map(int, arguments.workers.split(",")):
        print(f"{workers} workers: {(driver + carried + (inference + estimates) / workers) / 3600:.1f} h")


if __name__ == "__main__":
    main()
