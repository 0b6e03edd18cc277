"""Nodes are put in one topological order, whatever order the exporter wrote them in.

The order is the post-order of a depth-first walk from the graph outputs, inputs visited from left to right: it depends
on the graph alone, so two exports of one network list their layers alike.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto

from infoq_onnx.graph.editing import producers_of, reads, replace_nodes


def sort_nodes(model: onnx.ModelProto) -> int:
    """Sort the nodes; those that no output depends on come last, in the order they were found.

    Returns
    -------
    int
        Number of nodes that changed their place.
    """
    graph = model.graph
    nodes = list(graph.node)  # keeps the wrappers alive, so that id() tells nodes apart
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
