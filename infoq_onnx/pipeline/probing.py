"""Probes: how long the stages of an analysis take, measured on a few images, layers and units.

What a stage does once (it opens sessions, and searches) is told apart from what it does for each image, each layer or
each unit, and only the latter is multiplied.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.session import processors
from infoq_onnx.pipeline.analyzing import find_grids
from infoq_onnx.pipeline.looking import Seen, encode, look
from infoq_onnx.preparation import PreparedModel
from infoq_onnx.quantize.rounding import round_widths
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.quantize.wide import is_wide
from infoq_onnx.reporter import Silent
from infoq_onnx.schema import Layer, MeasurementSettings, Network, tensor_of, units_of
from infoq_onnx.sensitivity.local_error import local_errors
from infoq_onnx.sensitivity.sweep import tried_bits
from infoq_onnx.sensitivity.trials import Bench, Problem, Task
from infoq_onnx.simulate.equalization.equalize import find_factors
from infoq_onnx.simulate.rounding.as_matmul import Form, form_of
from infoq_onnx.simulate.rounding.layerwise import gathered
from infoq_onnx.simulate.running.batching import batch_size
from infoq_onnx.simulate.running.streams import Stream

T = TypeVar("T")
Shape = tuple[int, int, int, int]
"""G, R and d of `quantize.im2col`, and the number of outputs of an image."""

FEW, MORE = 8, 32
"""Numbers of images on which stages are run."""
_UNITS = 12
"""Number of units that are made ready for trials."""
_FEW_ROWS, _MORE_ROWS = 8, 32
"""Numbers of rows of a layer that are rounded, times the number of processors. Each of the first rows takes longer."""
_LONGEST = 2400
"""Longer rows are not rounded: what they take is extrapolated from shorter ones."""


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


@dataclass(frozen=True)
class _Layer:
    """Seconds to round a layer."""

    gathering: float
    """To collect what rounding needs of the images."""
    once: float
    """For what all rows have in common."""
    row: float
    """For each row."""


def rounding(graph: Graph, network: Network, dataset: Dataset, bits: Sequence[int]) -> float:
    """Estimate how long it takes to round the weights of all layers.

    The network is run as it would be, since the time to round a row depends on its inputs. Saved is to collect inputs
    for more than one layer of a shape, and to round more than some rows of it.

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
    known: dict[Shape, _Layer] = {}
    shapes: list[Shape] = []
    stream = Stream(graph, dataset, integer=True)
    advancing = 0.0
    for layer in network.layers:
        form = form_of(graph, layer)
        if form is not None:
            shape = (*form.shape, math.prod(layer.output_shape))
            groups, _, width, _ = shape
            if shape not in known and (width <= _LONGEST or is_wide(groups, width)):
                known[shape] = _probed(stream, layer, form, bits)
            shapes.append(shape)
        advancing += _timed(lambda: stream.advance(layer))[0]  # noqa: B023
    return advancing + sum(_extrapolated(known, shape) for shape in shapes)


def _probed(stream: Stream, layer: Layer, form: Form, bits: Sequence[int]) -> _Layer:
    """Round some rows of a layer."""
    gathering, seen = _timed(lambda: gathered(stream, layer, form))
    weight = form.rows()

    def run(count: int) -> float:
        some = slice(count)
        clipped = None if seen.clipped is None else seen.clipped.of(some)
        moments, has_bias = seen.moments.of(some), layer.bias is not None
        return _timed(
            lambda: round_widths(weight[:, some], moments, bits, has_bias=has_bias, exact_input=True, clipped=clipped)
        )[0]

    few, more = (min(count * processors(), weight.shape[1]) for count in (_FEW_ROWS, _MORE_ROWS))
    least = run(few)
    row = max(0.0, run(more) - least) / (more - few) if more > few else 0.0
    return _Layer(gathering, max(0.0, least - few * row), row)


def _extrapolated(known: Mapping[Shape, _Layer], shape: Shape) -> float:
    """Return the seconds to round a layer: factors of H take the third power of d, and moments and rows its square."""
    groups, rows, width, _ = shape
    narrow = [one for one in known if not is_wide(one[0], one[2])]
    like = shape if shape in known else max(narrow, key=lambda one: (one[0] == groups, one[2]), default=None)
    if like is None:
        return 0.0
    one, ratio = known[like], width / like[2]
    return one.gathering * ratio**2 + one.once * ratio**3 + rows * one.row * ratio**2


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
    ordered = sorted(units, key=lambda unit: bench.prefix.position(tensor_of(network, unit)))
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


def first(dataset: Dataset, count: int) -> Dataset:
    """Return the first images, or all if there are fewer."""
    return dataset.part(np.arange(min(count, len(dataset))))


def _timed(run: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that a call takes, and its result."""
    begun = time.monotonic()
    result = run()
    return time.monotonic() - begun, result
