"""Activation functions that are fused into the integer kernel before them.

An integer kernel writes codes, which are clipped to their range. The quantizer after a Relu, or after a Clip with lower
bound 0, therefore does the clipping itself, and the node can be omitted. To fuse another activation function, define
here when a quantizer computes it; quantizer placement (`placement`) and the emitted file (`emit.qdq`) follow.
"""

from __future__ import annotations

import onnx

from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.operators import clip_bounds, value_readers


def clips_at_zero(graph: Graph, node: onnx.NodeProto) -> bool:
    """Return whether a quantizer with zero point 0 can do this node's clipping."""
    if node.op_type == "Relu":
        return True
    if node.op_type != "Clip":
        return False
    low, high = clip_bounds(graph, node)
    return low == 0.0 and high > 0.0


def is_fused(graph: Graph, node: onnx.NodeProto) -> bool:
    """Return whether the quantizer after an activation function replaces the node.

    That requires a node that a quantizer can compute (`clips_at_zero`) and that is the only reader of its input.
    """
    source, output = node.input[0], node.output[0]
    alone = len(value_readers(graph, source)) == 1 and source not in graph.outputs and output not in graph.outputs
    return alone and clips_at_zero(graph, node)


def behind_activation(graph: Graph, tensor: str) -> str:
    """Return the output of the fusible activation function that is the only reader of `tensor`; else `tensor`."""
    readers = value_readers(graph, tensor)
    if len(readers) == 1 and clips_at_zero(graph, readers[0]) and readers[0].output[0] not in graph.outputs:
        return str(readers[0].output[0])
    return tensor
