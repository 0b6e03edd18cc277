"""Properties of single operators: clipping bounds, padding values, depthwise convolutions."""

from __future__ import annotations

import numpy as np
import onnx

from infoq_onnx.graph.editing import attribute, input_at
from infoq_onnx.graph.graph import Graph

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_SHAPE_READERS = frozenset({"Shape", "Size"})


def value_readers(graph: Graph, tensor: str) -> list[onnx.NodeProto]:
    """Return the nodes that read a tensor's values, not only its shape."""
    return [node for node in graph.consumers.get(tensor, []) if node.op_type not in _SHAPE_READERS]


def fills_with_zero(graph: Graph, pad: onnx.NodeProto) -> bool:
    """Return whether a Pad node in constant mode pads with 0; False if its value is computed at run time."""
    value = input_at(pad, 2)
    return not value or (value in graph.initializers and not np.any(graph.constant(value)))


def clip_bounds(graph: Graph, node: onnx.NodeProto) -> tuple[float, float]:
    """Return the lower and upper bound of a Relu or Clip node; NaN for a bound that is computed at run time."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    bounds = []
    for index, default in ((1, -np.inf), (2, np.inf)):
        name = node.input[index] if len(node.input) > index else ""
        if not name:
            bounds.append(float(default))
        else:
            bounds.append(graph.constant(name).item() if name in graph.initializers else float("nan"))
    return bounds[0], bounds[1]


def bounds_behind(graph: Graph, tensor: str) -> tuple[float, float] | None:
    """Return the known bounds of the Relu or Clip that alone reads `tensor`; None if there is none."""
    readers = value_readers(graph, tensor)
    if len(readers) != 1 or readers[0].op_type not in ("Relu", "Clip") or tensor in graph.outputs:
        return None
    low, high = clip_bounds(graph, readers[0])
    return (low, high) if low <= high else None


def is_depthwise(graph: Graph, node: onnx.NodeProto) -> bool:
    """Return whether a node is a depthwise convolution: output channel c depends only on input channel c."""
    if node.op_type != "Conv":
        return False
    outputs, inputs = graph.initializers[node.input[1]].dims[:2] if node.input[1] in graph.initializers else (0, 0)
    return inputs == 1 and outputs == int(attribute(node, "group", 1))
