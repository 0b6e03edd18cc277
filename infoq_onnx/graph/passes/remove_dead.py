"""Remove everything that no graph output depends on: nodes, optional node outputs, initializers, `value_info`."""

from __future__ import annotations

import onnx
from onnx import GraphProto, NodeProto

from infoq_onnx.graph.editing import opset_of, output_names, reads, remove_initializers, remove_nodes, uses_of


def remove_dead(model: onnx.ModelProto) -> int:
    """Remove unused nodes, optional trailing node outputs and initializers, and all `value_info`.

    The shapes in `value_info` describe the graph before the passes changed it. `Graph` determines them again.

    Returns
    -------
    int
        Number of nodes, outputs and initializers removed; `value_info` is not counted.
    """
    graph = model.graph
    del graph.value_info[:]
    dead = _dead_nodes(graph)
    remove_nodes(graph, dead)
    uses = uses_of(graph)
    opset, used = opset_of(model), set(uses)
    trimmed = sum(_trim_outputs(node, opset, used) for node in graph.node)
    unused = {tensor.name for tensor in graph.initializer if not uses[tensor.name]}
    remove_initializers(graph, unused)
    return len(dead) + trimmed + len(unused)


def _dead_nodes(graph: GraphProto) -> list[NodeProto]:
    live = output_names(graph)
    dead = []
    for node in reversed(graph.node):
        if live.intersection(node.output):
            live.update(reads(node))
        else:
            dead.append(node)
    return dead


def _trim_outputs(node: NodeProto, opset: int, used: set[str]) -> int:
    if node.domain or not onnx.defs.has(node.op_type, opset, ""):
        return 0
    formal = onnx.defs.get_schema(node.op_type, opset, "").outputs
    count = 0
    while len(node.output) > 1 and node.output[-1] not in used:
        # the last formal output stands for all further outputs, which are then variadic and must be kept
        option = formal[min(len(node.output), len(formal)) - 1].option
        if option != onnx.defs.OpSchema.FormalParameterOption.Optional:
            break
        del node.output[-1]
        count += 1
    return count
