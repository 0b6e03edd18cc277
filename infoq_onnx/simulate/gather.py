"""Run two networks up to one layer, and keep what fitting and rounding that layer need to know of the images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from infoq_onnx.quantize.clipped import Clipped
from infoq_onnx.quantize.moments import Moments
from infoq_onnx.schema import Layer
from infoq_onnx.simulate.forms import Form, target_of
from infoq_onnx.simulate.streams import Stream

_COLUMN_BYTES = 128 * 2**20
"""What the columns of one batch may take."""
_POSITIONS = 65536
"""Output positions that enter the moments, of all images together …"""
_POSITIONS_A_WEIGHT = 32
"""… or this many for each weight of a row, where that is more. Neighbours in an image say much the same."""
_MASSIVE = 100.0
"""Tokens whose target's squared norm is this many times the median are left out of the moments. A handful of them would
otherwise decide the fit; what reads them normalises them (see `simulate.massive`)."""
_CLIPPED_POSITIONS = 8192
"""Positions kept of a layer whose output is clipped, of all images together …"""
_CLIPPED_BYTES = 128 * 2**20
"""… or fewer, to stay below this."""


@dataclass(frozen=True)
class Gathered:
    """What the images say of a layer."""

    moments: Moments
    """Of its input in one network and its output in another."""
    clipped: Clipped | None
    """Some positions of both, where the output is clipped behind the layer."""


def gather(
    reference: Stream,
    student: Stream,
    layer: Layer,
    form: Form,
    shortcut: onnx.NodeProto | None = None,
    bounds: tuple[float, float] | None = None,
) -> Gathered:
    """Sum the moments of a layer's input in one network with its output in another, and keep some positions of both.

    Parameters
    ----------
    reference : the network whose output is the target
    student : the network whose input the layer gets; the same one where nothing has been lost yet
    layer, form : the layer
    shortcut : the Add whose *sum* is the target instead; what its other side is in `student` is subtracted
    bounds : what the target is clipped to behind the layer; None keeps no positions
    """
    node = student.node[layer.name]
    wanted = [next(name for name in node.input if name in student.graph.shapes)]
    target = result = target_of(reference.graph, layer)
    if shortcut is not None:
        target = shortcut.output[0]
        side = 1 - list(shortcut.input).index(result)
        wanted.append(student.node[shortcut.name].input[side])
    groups, rows, width = form.rows().shape
    moments = Moments(groups, width, rows)
    positions = math.prod(layer.output_shape) // (groups * rows)
    # where the leading axis is not the batch, positions of one image lie apart
    batched = target in reference.graph.batched and all(name in student.graph.batched for name in wanted)
    enough = -(-max(_POSITIONS, _POSITIONS_A_WEIGHT * width) // reference.images)
    taken = min(positions, enough) if batched else positions
    size = int(np.clip(_COLUMN_BYTES // (4 * groups * width * taken), 1, reference.size))
    draw, pick = np.random.default_rng(0), np.random.default_rng(1)
    kept = min(_CLIPPED_POSITIONS, _CLIPPED_BYTES // (4 * groups * (width + 2 * rows)))
    every = max(1, -(-taken * reference.images // max(1, kept)))
    parts: list[list[npt.NDArray[np.float32]]] = []
    streams = zip(reference.run([target], size), student.run(wanted, size), strict=True)
    for index, ((targets,), inputs) in enumerate(streams):
        chosen = np.sort(draw.choice(positions, taken, replace=False)) if taken < positions else None
        columns, outputs = form.columns(inputs[0], chosen), form.outputs(targets, chosen)
        added = [form.outputs(value, chosen) for value in inputs[1:]]
        for value in added:
            outputs = outputs - value
        if form.windows is None and positions > 1:
            ordinary = _ordinary(outputs)
            columns, outputs = columns[:, ordinary], outputs[:, ordinary]
            added = [value[:, ordinary] for value in added]
        # positions lie image by image, so the halves share one image at most; elsewhere batches take turns
        split = batched and len(inputs[0]) > 1
        middle = columns.shape[1] // 2 if split else columns.shape[1] * (index % 2)
        moments.add(columns[:, :middle], outputs[:, :middle], 0)
        moments.add(columns[:, middle:], outputs[:, middle:], 1)
        if bounds is not None:
            some = np.sort(pick.choice(columns.shape[1], -(-columns.shape[1] // every), replace=False))
            parts.append([value[:, some] for value in (columns, outputs, *added)])
    if bounds is None:
        return Gathered(moments, None)
    joined = [np.concatenate(part, axis=1) for part in zip(*parts, strict=True)]
    return Gathered(moments, Clipped(joined[0], joined[1], joined[2] if shortcut is not None else None, *bounds))


def _ordinary(outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which positions of [1, p, R] do not dwarf the others, [p]."""
    norms = np.sum(np.square(outputs[0], dtype=np.float64), axis=1)
    median = float(np.median(norms))
    kept: npt.NDArray[np.bool_] = norms <= (_MASSIVE * median if median > 0 else np.inf)
    return kept
