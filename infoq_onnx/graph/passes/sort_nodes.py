"""Sort the nodes in a canonical topological order, independent of their order in the file.

The order is the post-order of a depth-first traversal from the graph outputs that visits inputs from left to right. It
depends only on the graph, so two exports of the same network list their layers in the same order.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto

from infoq_onnx.graph.editing import producers_of, reads, replace_nodes


def sort_nodes(model: onnx.ModelProto) -> int:
    """Sort the nodes. Nodes that no output depends on come last.

    Returns
    -------
    int
        Number of nodes whose position changed.
    """
    graph = model.graph
    nodes = list(graph.node)  # keeps the wrappers alive, so that id() identifies nodes
    producers = producers_of(graph)
    order: list[NodeProto] = []
    done: set[int] = set()
    roots = [producers[value.name] for value in graph.output if value.name in producers]
    for root in (*roots, *nodes):
        stack = [(root, iter(reads(root)))]
        if id(root) in done:
            continue
        done.add(id(root))
        while stack:
            node, pending = stack[-1]
            for name in pending:
                producer = producers.get(name)
                if producer is not None and id(producer) not in done:
                    done.add(id(producer))
                    stack.append((producer, iter(reads(producer))))
                    break
            else:
                order.append(node)
                stack.pop()
    moved = sum(before is not after for before, after in zip(nodes, order, strict=True))
    if moved:
        replace_nodes(graph, order)
    return moved
