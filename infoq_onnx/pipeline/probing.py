"""Probes: how long the stages of an analysis take, measured on a few images, layers and units.

What a stage does once (it opens sessions, and searches) is told apart from what it does for each image: it is run on
two numbers of images.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.session import processors
from infoq_onnx.pipeline.analyzing import find_grids
from infoq_onnx.pipeline.looking import Seen, encode, look
from infoq_onnx.preparation import PreparedModel
from infoq_onnx.quantize.rounding import round_widths
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.reporter import Silent
from infoq_onnx.schema import MeasurementSettings, Network, tensor_of, units_of
from infoq_onnx.sensitivity.local_error import local_errors
from infoq_onnx.sensitivity.sweep import tried_bits
from infoq_onnx.sensitivity.trials import Bench, Problem, Task
from infoq_onnx.simulate.rounding.gather import Gathered
from infoq_onnx.simulate.rounding.layerwise import EVERY, gathered, unrounded
from infoq_onnx.simulate.running.batching import batch_size
from infoq_onnx.simulate.running.streams import Stream

T = TypeVar("T")
Shape = tuple[int, int, int]
"""G, R and d of `quantize.im2col`."""

FEW, MORE = 8, 32
"""Numbers of images on which stages are run."""
_UNITS = 12
"""Number of units that are made ready for trials."""
_FEW_ROWS, _MORE_ROWS = 1, 8
"""Numbers of rows of a layer that are rounded, times the number of processors."""
_LONGEST = 2400
"""Longer rows are not rounded: what they take is extrapolated from shorter ones."""


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

    def run(count: int) -> tuple[float, tuple[Seen, GridTable]]:
        part = first(dataset, count)
        return _timed(lambda: find_grids(_looked(prepared, part, settings), part, settings, Silent()))

    # two whole batches take about as much memory as an analysis
    most = min(len(dataset), max(MORE, 2 * batch_size(prepared.graph)))
    # the first run also loads compiled code, as an analysis does
    once, _ = run(FEW)
    few, _ = run(FEW)
    more, found = run(most)
    further = max(0.0, more - few) / (most - FEW)
    return once + further * (len(dataset) - FEW), *found


def _looked(prepared: PreparedModel, dataset: Dataset, settings: MeasurementSettings) -> Seen:
    return encode(look(prepared, dataset, settings, Silent()), dataset, settings)


@dataclass(frozen=True)
class _Rows:
    """Seconds to round the rows of a layer."""

    once: float
    """For what all rows have in common."""
    each: float
    """For each row."""


def rounding(graph: Graph, network: Network, dataset: Dataset, count: int, bits: Sequence[int]) -> float:
    """Estimate how long it takes to round the weights of all layers.

    Parameters
    ----------
    graph, network : the float network
    dataset : images of the analysis
    count : number of images that the analysis rounds with
    bits : bit-widths

    Returns
    -------
    float
        Seconds.
    """
    known: dict[Shape, _Rows] = {}
    shapes: list[Shape] = []

    def run(images: int, *, probing: bool = False) -> float:
        """Gather what rounding needs of some images; the seconds without those of the probes."""
        begun, spent = time.monotonic(), 0.0
        stream = Stream(graph, first(dataset, images), integer=True)
        # as many positions of each image as the analysis takes
        every = EVERY * count // images
        for layer, form, seen in gathered(stream, network, unrounded(graph, network, bits, {}), every):
            if probing:
                paused = time.monotonic()
                _probe(seen, form.rows(), bits, known, has_bias=layer.bias is not None)
                shapes.append(form.shape)
                spent += time.monotonic() - paused
        return time.monotonic() - begun - spent

    few, more = min(FEW, count), min(MORE, count)
    once, again = run(few), run(few)
    further = run(more, probing=True)
    gathering = once + (max(0.0, further - again) / (more - few) * (count - few) if more > few else 0.0)
    return gathering + sum(_extrapolated(known, shape) for shape in shapes)


def _probe(
    seen: Gathered,
    weight: npt.NDArray[np.float32],
    bits: Sequence[int],
    known: dict[Shape, _Rows],
    *,
    has_bias: bool,
) -> None:
    """Round some rows of a layer [G, R, d], unless one of its shape was rounded or the rows are too long."""
    groups, rows, width = weight.shape
    if (groups, rows, width) in known or width > _LONGEST:
        return

    def run(count: int) -> float:
        some = slice(count)
        clipped = None if seen.clipped is None else seen.clipped.of(some)
        options = {"has_bias": has_bias, "exact_input": True, "clipped": clipped}
        return _timed(lambda: round_widths(weight[:, some], seen.moments.of(some), bits, **options))[0]  # type: ignore[arg-type]

    few, more = (min(count * processors(), rows) for count in (_FEW_ROWS, _MORE_ROWS))
    if not known:
        run(few)  # loads the compiled code
    least = run(few)
    each = max(0.0, run(more) - least) / (more - few) if more > few else 0.0
    known[groups, rows, width] = _Rows(max(0.0, least - few * each), each)


def _extrapolated(known: dict[Shape, _Rows], shape: Shape) -> float:
    """Return the seconds to round a layer: factors of H take the third power of d, and each row its square."""
    groups, rows, width = shape
    longest = shape if shape in known else max(known, key=lambda one: (one[0] == groups, one[2]), default=None)
    if longest is None:
        return 0.0
    ratio = width / longest[2]
    return known[longest].once * ratio**3 + rows * known[longest].each * ratio**2


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
