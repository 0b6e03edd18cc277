"""Nodes that pass their input through are removed: Identity, and Dropout, which does nothing at inference.

y = Identity(x): readers of y read x. Where y is a graph output, x takes its name instead, so that outputs stay
called what they were.
"""

from __future__ import annotations

import onnx
from onnx import GraphProto, NodeProto

from infoq_onnx.graph.editing import (
    initializers_of,
    input_at,
    output_names,
    producers_of,
    remove_nodes,
    rename_uses,
    to_array,
    uses_of,
)


def remove_identity(model: onnx.ModelProto) -> int:
    """Remove Identity nodes and inference-time Dropout, those behind initializers included.

    A node that copies a graph input, an initializer or another graph output to a graph output stays.

    Returns
    -------
    int
        Number of nodes removed.
    """
    graph = model.graph
    candidates = [node for node in graph.node if _passes_through(graph, node)]
    return sum(_bypass(graph, node) for node in candidates)


def _passes_through(graph: GraphProto, node: NodeProto) -> bool:
    if node.domain or node.op_type not in ("Identity", "Dropout"):
        return False
    if node.op_type == "Identity":
        return True
    if any(uses_of(graph)[mask] for mask in node.output[1:] if mask):
        return False
    training = input_at(node, 2)
    constant = initializers_of(graph).get(training)
    return not training or (constant is not None and not to_array(constant).any())


def _bypass(graph: GraphProto, node: NodeProto) -> bool:
    source, target = node.input[0], node.output[0]
    outputs = output_names(graph)
    if target not in outputs:
        rename_uses(graph, target, source)
        remove_nodes(graph, [node])
        return True
    producer = producers_of(graph).get(source)
    if producer is None or source in outputs:
        return False
    remove_nodes(graph, [node])
    rename_uses(graph, source, target)
    for index, name in enumerate(producer.output):
        if name == source:
            producer.output[index] = target
    return True
