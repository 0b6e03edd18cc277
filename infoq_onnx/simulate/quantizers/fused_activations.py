"""Which activation functions become part of the integer kernel in front of them.

An integer kernel writes codes, and codes are clipped to their range. So the quantizer behind a Relu, or a Clip from 0,
does the clipping itself, and the node can be left out. To fuse another activation function, say here when a quantizer
computes it; the quantizers (`placement`) and the emitted file (`emit.qdq`) follow.
"""

from __future__ import annotations

import onnx

from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.operators import clip_bounds, value_readers


def clips_at_zero(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a quantizer with zero point 0 may do this node's clipping."""
    if node.op_type == "Relu":
        return True
    if node.op_type != "Clip":
        return False
    low, high = clip_bounds(graph, node)
    return low == 0.0 and high > 0.0


def is_fused(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether the quantizer behind an activation function does all of its work, and nothing else reads its input."""
    source, output = node.input[0], node.output[0]
    alone = len(value_readers(graph, source)) == 1 and source not in graph.outputs and output not in graph.outputs
    return alone and clips_at_zero(graph, node)


def behind_activation(graph: Graph, tensor: str) -> str:
    """Return the output of the fused activation function that is the only reader of `tensor`; else `tensor` itself."""
    readers = value_readers(graph, tensor)
    if len(readers) == 1 and clips_at_zero(graph, readers[0]) and readers[0].output[0] not in graph.outputs:
        return str(readers[0].output[0])
    return tensor
