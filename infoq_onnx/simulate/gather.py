"""Run two networks up to one layer, and sum what fitting and rounding that layer need to know of the images."""

from __future__ import annotations

import math

import numpy as np
import onnx

from infoq_onnx.quantize.moments import Moments
from infoq_onnx.schema import Layer
from infoq_onnx.simulate.forms import Form
from infoq_onnx.simulate.streams import Stream

_COLUMN_BYTES = 128 * 2**20
"""What the columns of one batch may take."""
_POSITIONS = 65536
"""Output positions that enter the moments, of all images together …"""
_POSITIONS_A_WEIGHT = 32
"""… or this many for each weight of a row, where that is more. Neighbours in an image say much the same."""


def gather(
    reference: Stream, student: Stream, layer: Layer, form: Form, shortcut: onnx.NodeProto | None = None
) -> Moments:
    """Sum the moments of a layer's input in one network with its output in another.

    Parameters
    ----------
    reference : the network whose output is the target
    student : the network whose input the layer gets; the same one where nothing has been lost yet
    layer, form : the layer
    shortcut : the Add whose *sum* is the target instead; what its other side is in `student` is subtracted
    """
    node = student.node[layer.name]
    wanted = [next(name for name in node.input if name in student.graph.shapes)]
    target = layer.output
    if shortcut is not None:
        target = shortcut.output[0]
        side = 1 - list(shortcut.input).index(layer.output)
        wanted.append(student.node[shortcut.name].input[side])
    groups, rows, width = form.rows().shape
    moments = Moments(groups, width, rows)
    positions = math.prod(layer.output_shape) // (groups * rows)
    # where the leading axis is not the batch, positions of one image lie apart
    batched = target in reference.graph.batched and all(name in student.graph.batched for name in wanted)
    enough = -(-max(_POSITIONS, _POSITIONS_A_WEIGHT * width) // reference.images)
    taken = min(positions, enough) if batched else positions
    size = int(np.clip(_COLUMN_BYTES // (4 * groups * width * taken), 1, reference.size))
    draw = np.random.default_rng(0)
    streams = zip(reference.run([target], size), student.run(wanted, size), strict=True)
    for index, ((targets,), inputs) in enumerate(streams):
        if shortcut is not None:
            targets = targets - inputs[1]
        chosen = np.sort(draw.choice(positions, taken, replace=False)) if taken < positions else None
        columns, outputs = form.columns(inputs[0], chosen), form.outputs(targets, chosen)
        # positions lie image by image, so the halves share one image at most; elsewhere batches take turns
        split = batched and len(inputs[0]) > 1
        middle = columns.shape[1] // 2 if split else columns.shape[1] * (index % 2)
        moments.add(columns[:, :middle], outputs[:, :middle], 0)
        moments.add(columns[:, middle:], outputs[:, middle:], 1)
    return moments
