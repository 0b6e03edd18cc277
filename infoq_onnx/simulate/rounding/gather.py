"""Run two networks up to one layer, and collect the image statistics that fitting and rounding the layer need."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from infoq_onnx.graph.editing import attribute
from infoq_onnx.graph.graph import Graph
from infoq_onnx.quantize.bias_correction import Clipped
from infoq_onnx.quantize.moments import Moments
from infoq_onnx.quantize.rounding import bytes_to_round
from infoq_onnx.quantize.wide import Columns, is_wide, most_positions
from infoq_onnx.schema import Layer
from infoq_onnx.simulate.rounding.as_matmul import Form, target_of
from infoq_onnx.simulate.running.streams import Stream

Float32 = npt.NDArray[np.float32]

_COLUMN_BYTES = 128 * 2**20
"""Maximum bytes for the columns of one batch."""
_POSITIONS = 65536
"""Number of output positions, over all images, that enter the moments …"""
_POSITIONS_A_WEIGHT = 32
"""… or this many per weight of a row, if that is more. More positions add little: neighbours in an image are alike."""
_MASSIVE = 100.0
"""Tokens whose target's squared norm exceeds the median by this factor are excluded from the moments. A handful of them
would otherwise determine the fit (see `simulate.quantizers.outlier_ranges`)."""
_CLIPPED_POSITIONS = 8192
"""Number of positions, over all images, kept for a layer whose output is clipped …"""
_CLIPPED_BYTES = 128 * 2**20
"""… or fewer, to stay below this many bytes."""


@dataclass(frozen=True)
class Gathered:
    """Statistics of a layer over the calibration images."""

    moments: Moments | Columns
    """Moments of the layer's input in one network and its target in another; for a wide layer, the inputs and targets
    themselves."""
    clipped: Clipped | None
    """Sampled positions of the inputs and targets, where a Relu or Clip follows the layer; else None."""


def gather(
    reference: Stream,
    student: Stream,
    layer: Layer,
    form: Form,
    shortcut: onnx.NodeProto | None = None,
    bounds: tuple[float, float] | None = None,
    every: int = 1,
) -> Gathered:
    """Collect the moments of a layer's input in one network and its output in another, and sample positions of both.

    Parameters
    ----------
    reference : network whose output is the target
    student : network that the layer's input comes from; may be the same network
    layer, form : the layer, and its form as a matrix product
    shortcut : residual Add whose *sum* is the target instead of the layer's output; the Add's other operand in
        `student` is subtracted from the sum
    bounds : bounds of the Relu or Clip after the layer; None samples no positions
    every : take only one in so many of the usual positions

    Returns
    -------
    Gathered
    """
    node = student.node[layer.name]
    wanted = [next(name for name in node.input if name in student.graph.shapes)]
    target = result = target_of(reference.graph, layer)
    if shortcut is not None:
        target = shortcut.output[0]
        side = 1 - list(shortcut.input).index(result)
        wanted.append(student.node[shortcut.name].input[side])
    normalizer = _normalizer(reference.graph, target) if form.windows is None else None
    groups, rows, width = form.shape
    positions = math.prod(layer.output_shape) // (groups * rows)
    # where the leading axis is not the batch, the positions of one image are not contiguous, so all are taken
    batched = target in reference.graph.batched and all(name in student.graph.batched for name in wanted)
    wide = is_wide(groups, width)
    enough = -(-_wanted_positions(groups, width) // (every * reference.images))
    taken = min(positions, enough) if batched else positions
    moments = Columns(width, rows, taken * reference.images) if wide else Moments(groups, width, rows)
    size = int(np.clip(_COLUMN_BYTES // (4 * groups * width * taken), 1, reference.size))
    draw, pick = np.random.default_rng(0), np.random.default_rng(1)
    kept = min(_CLIPPED_POSITIONS // every, _CLIPPED_BYTES // (4 * groups * (width + 2 * rows)))
    apart = max(1, -(-taken * reference.images // max(1, kept)))
    parts: list[list[Float32]] = []
    streams = zip(reference.run([target], size), student.run(wanted, size), strict=True)
    for index, ((targets,), inputs) in enumerate(streams):
        chosen = np.sort(draw.choice(positions, taken, replace=False)) if taken < positions else None
        columns, outputs = form.columns(inputs[0], chosen), form.outputs(targets, chosen)
        weights = None
        if normalizer is not None:
            weights = _normalized(outputs, normalizer)
        elif form.windows is None and positions > 1:
            weights = _ordinary(outputs)
        added = [form.outputs(value, chosen) for value in inputs[1:]]
        for value in added:
            outputs = outputs - value
        # positions are ordered image by image, so splitting a batch divides at most one image between the halves;
        # batches that cannot be split alternate between the halves
        split = batched and len(inputs[0]) > 1
        middle = columns.shape[1] // 2 if split else columns.shape[1] * (index % 2)
        for half, part in enumerate((slice(None, middle), slice(middle, None))):
            moments.add(columns[:, part], outputs[:, part], half, None if weights is None else weights[part])
        if bounds is not None:
            some = np.sort(pick.choice(columns.shape[1], -(-columns.shape[1] // apart), replace=False))
            parts.append([value[:, some] for value in (columns, outputs, *added)])
    if bounds is None:
        return Gathered(moments, None)
    joined = [np.concatenate(part, axis=1) for part in zip(*parts, strict=True)]
    return Gathered(moments, Clipped(joined[0], joined[1], joined[2] if shortcut is not None else None, *bounds))


def _wanted_positions(groups: int, width: int) -> int:
    """Return how many output positions to take for a layer [G, R, d], over all images."""
    return most_positions(width) if is_wide(groups, width) else max(_POSITIONS, _POSITIONS_A_WEIGHT * width)


def bytes_for(form: Form, layer: Layer, images: int, every: int = 1) -> int:
    """Estimate the memory for gathering and rounding a layer.

    Parameters
    ----------
    form, layer : the layer
    images : number of calibration images
    every : see `gather`

    Returns
    -------
    int
        Bytes.
    """
    groups, rows, width = form.shape
    positions = images * math.prod(layer.output_shape) // (groups * rows)
    taken = min(positions, -(-_wanted_positions(groups, width) // every))
    columns = min(_COLUMN_BYTES, 4 * groups * width * taken)
    return columns + bytes_to_round(groups, rows, width, taken)


def _normalizer(graph: Graph, target: str) -> onnx.NodeProto | None:
    """Return the LayerNormalization over the last axis that reads a layer's target."""
    for node in graph.consumers.get(target, []):
        last = (-1, len(graph.shapes[target]) - 1 + (target in graph.batched))
        if node.op_type == "LayerNormalization" and attribute(node, "axis", -1) in last:
            return node
    return None


def _normalized(targets: Float32, normalizer: onnx.NodeProto) -> Float32:
    """Return the weight [p] of each position of [1, p, R]: the factor 1 / (variance + ε) of the normalisation.

    Without these weights, a token thirty times as large as others would count about a thousand times as much.
    """
    variances = targets[0].var(axis=1, dtype=np.float64) + attribute(normalizer, "epsilon", 1e-5)
    return np.asarray(1 / variances, dtype=np.float32)


def _ordinary(targets: Float32) -> Float32:
    """Return the weight [p] of each position of [1, p, R]: 0 for outliers (see `_MASSIVE`), 1 for all others."""
    norms = np.sum(np.square(targets[0], dtype=np.float64), axis=1)
    median = float(np.median(norms))
    return np.asarray(norms <= (_MASSIVE * median if median > 0 else np.inf), dtype=np.float32)
