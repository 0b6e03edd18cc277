"""Probes: how long the stages of an analysis take, and how much memory, on a few images, layers and units.

What a stage does once (it opens sessions, and searches) is told apart from what it does for each image, each layer or
each unit, and only the latter is multiplied.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.session import processors
from infoq_onnx.memory import forget_peak, peak, release, resident
from infoq_onnx.pipeline.analyzing import find_grids
from infoq_onnx.pipeline.looking import Seen, encode, look
from infoq_onnx.preparation import PreparedModel
from infoq_onnx.quantize.rounding import LayerToRound
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.reporter import Silent
from infoq_onnx.schema import Layer, MeasurementSettings, Network, Unit, tensor_of, units_of
from infoq_onnx.sensitivity.local_error import local_errors
from infoq_onnx.sensitivity.sweep import tried_bits
from infoq_onnx.sensitivity.trials import Bench, Problem, Task, baseline_graph
from infoq_onnx.simulate.equalization.equalize import find_factors
from infoq_onnx.simulate.rounding.as_matmul import Form, form_of
from infoq_onnx.simulate.rounding.layerwise import gathered
from infoq_onnx.simulate.running.batching import batch_size
from infoq_onnx.simulate.running.prefix import Prefix
from infoq_onnx.simulate.running.streams import Stream

T = TypeVar("T")
Shape = tuple[int, int, int, int]
"""G, R and d of `quantize.im2col`, and the number of outputs of an image."""

FEW, MORE = 8, 32
"""Numbers of images on which stages are run."""
_TRIED = 64
"""Number of images with which the memory of trials is measured."""
_UNITS = 12
"""Number of units that are made ready for trials."""
_FEWEST_ROWS = 8
"""Number of rows of a layer that are rounded first, times the number of processors."""
_LEAST_SECONDS = 0.25
"""Twice as many rows are rounded until they take as long as this, since the first rows take longer."""


class _Passes(Silent):
    """A reporter that measures the time between the first and the last batch of images."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def progress(self, stage: str, detail: str, done: int, total: int, share: float | None = None) -> None:  # noqa: ARG002
        self.seen.append((done, time.monotonic()))

    @property
    def seconds(self) -> float:
        """Seconds for each image in each pass."""
        (before, begun), (after, ended) = self.seen[0], self.seen[-1]
        return (ended - begun) / max(1, after - before)


def ranges(prepared: PreparedModel, dataset: Dataset, settings: MeasurementSettings) -> tuple[float, Seen, GridTable]:
    """Find the grids for a few images.

    Parameters
    ----------
    prepared, dataset, settings : the model, all images, and the settings of the analysis

    Returns
    -------
    seconds : float
        Estimated time to find the grids for all images.
    seen, grids : Seen, GridTable
        Of the few images.
    """

    def looked(part: Dataset) -> Seen:
        return encode(look(prepared, part, settings, Silent()), part, settings)

    def factors(part: Dataset) -> float:
        if not settings.equalize:
            return 0.0
        return _timed(lambda: find_factors(prepared.graph, prepared.network, part, lambda _: None))[0]

    # two whole batches take about as much memory as an analysis
    few, more = (first(dataset, count) for count in (FEW, max(MORE, 2 * batch_size(prepared.graph))))
    added = max(1, len(more) - len(few))
    short, _ = _timed(lambda: looked(few))
    looking, seen = _timed(lambda: looked(more))
    each = max(0.0, looking - short) / added + max(0.0, factors(more) - factors(few)) / added
    passes = _Passes()
    finding, found = _timed(lambda: find_grids(seen, more, settings, passes))
    return looking + finding + (each + 2 * passes.seconds) * (len(dataset) - len(more)), *found


def rounding(graph: Graph, network: Network, dataset: Dataset, bits: Sequence[int]) -> float:
    """Estimate how long it takes to round the weights of all layers.

    The network is run as it would be, since the time to round a row depends on its inputs. Of the layers of one shape,
    only the first is probed, and only some of its rows are rounded.

    Parameters
    ----------
    graph, network : the float network
    dataset : images to round with
    bits : bit-widths

    Returns
    -------
    float
        Seconds.
    """
    known: dict[Shape, float] = {}
    stream = Stream(graph, dataset, integer=True)
    seconds = 0.0
    for layer in network.layers:
        form = form_of(graph, layer)
        if form is not None:
            shape = (*form.shape, math.prod(layer.output_shape))
            if shape not in known:
                known[shape] = _rounding_seconds(stream, layer, form, bits)
            seconds += known[shape]
        seconds += _timed(lambda: stream.advance(layer))[0]  # noqa: B023
    return seconds


def _rounding_seconds(stream: Stream, layer: Layer, form: Form, bits: Sequence[int]) -> float:
    """Round some rows of a layer, and estimate how long all rows take."""
    gathering, seen = _timed(lambda: gathered(stream, layer, form))
    has_bias, rows = layer.bias is not None, form.shape[1]
    fitting, fitted = _timed(
        lambda: LayerToRound(form.rows(), seen.moments, has_bias=has_bias, exact_input=True, clipped=seen.clipped)
    )

    def run(count: int) -> float:
        return _timed(lambda: [fitted.round(width, [slice(count)]) for width in bits])[0]

    chunks = fitted.chunks()
    most = len(range(*chunks[0].indices(rows)))
    fewest = count = min(_FEWEST_ROWS * processors(), most)
    least = taken = run(count)
    while count < most and (count == fewest or taken < _LEAST_SECONDS):
        count = min(2 * count, most)
        taken = run(count)
    row = max(0.0, taken - least) / (count - fewest) if count > fewest else 0.0
    return gathering + fitting + len(chunks) * (taken - count * row) + rows * row


def trials(problem: Problem, workers: int, stages: int) -> float:
    """Estimate how long trials take apart from the arithmetic: sessions are opened, and local errors are measured.

    Parameters
    ----------
    problem : the network with grids, and some images
    workers : number of processes
    stages : number of times that every unit is made ready

    Returns
    -------
    float
        Seconds.
    """
    network, bits = problem.network, tuple(tried_bits(problem.settings))
    errors, _ = _timed(lambda: local_errors(problem, bits))
    one = {name: getattr(problem, name)[:1] for name in ("labels", "targets", "encoded")}
    bench = Bench(dataclasses.replace(problem, dataset=first(problem.dataset, 1), **one))
    units = units_of(network, weight_only=problem.settings.weight_only)
    ordered = sorted(units, key=lambda unit: _place(bench.prefix, unit))
    chosen = [ordered[index] for index in np.unique(np.linspace(0, len(ordered) - 1, _UNITS).round().astype(int))]
    opening = carrying = 0.0
    for unit in chosen:
        seconds, (suffix, variants, _) = _timed(lambda: bench.ready(Task(unit, bits, bench.candidates)))  # noqa: B023
        opening += seconds
        seconds, kept = _timed(lambda: list(bench.prefix.batches(tensor_of(network, unit), suffix.kept)))  # noqa: B023
        carrying += seconds
        for count, values in kept:
            opening += _timed(lambda: suffix.run(count, values, variants))[0]  # noqa: B023
    return errors + stages * (opening / len(chosen) * len(units) / workers + carrying)


def trying_bytes(bench: Bench, dataset: Dataset, *, spilled: bool) -> int:
    """Measure the memory of the trials of three units: the first one, and two that most activations precede.

    Parameters
    ----------
    bench : of the network with grids
    dataset : images to try
    spilled : whether activations in front of a unit go to a file

    Returns
    -------
    int
        Bytes, besides those of the images and the network.
    """
    problem = bench.problem
    network, bits = problem.network, tuple(tried_bits(problem.settings))
    prefix = Prefix(baseline_graph(problem), network, first(dataset, _TRIED))
    stored = prefix.stored_bytes()
    units = sorted(units_of(network, weight_only=problem.settings.weight_only), key=lambda unit: _place(prefix, unit))
    behind = [unit for unit in units if _place(prefix, unit) > np.argmax(stored)]
    # memory that earlier stages have released would hide what trials take
    release()
    forget_peak()
    before = resident()
    for unit in dict.fromkeys((units[0], *behind[:2])):
        suffix, variants, _ = bench.ready(Task(unit, bits, bench.candidates))
        for count, values in prefix.batches(tensor_of(network, unit), suffix.kept):
            suffix.run(count, values, variants)
    taken = max(0, peak() - before - max(stored))
    return taken if spilled else taken + max(Prefix(problem.graph, network, dataset).stored_bytes())


def _place(prefix: Prefix, unit: Unit) -> int:
    """Return the number of layers before a unit."""
    return prefix.position(tensor_of(prefix.network, unit))


def first(dataset: Dataset, count: int) -> Dataset:
    """Return the first images, or all if there are fewer."""
    return dataset.part(np.arange(min(count, len(dataset))))


def _timed(run: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that a call takes, and its result."""
    begun = time.monotonic()
    result = run()
    return time.monotonic() - begun, result
