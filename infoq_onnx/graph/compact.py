"""Take out of a model what only its exporter wants: documentation, traces of source code, and long inner names."""

from __future__ import annotations

import string
from collections.abc import Collection, Iterator

from onnx import GraphProto, ModelProto, NodeProto

from infoq_onnx.graph.editing import free_names, subgraphs, walk

_DIGITS = string.digits + string.ascii_lowercase


def strip_documentation(model: ModelProto) -> None:
    """Remove doc strings and metadata of graphs, nodes, values, constants and functions, in place.

    torch.export writes stack traces, class names and lines of source code there. The metadata of the model itself stay.
    """
    model.ClearField("doc_string")
    _strip(model.graph)
    for function in model.functions:
        function.ClearField("doc_string")
        del function.metadata_props[:]
        _strip_nodes(function.node)
        for value in function.value_info:
            value.ClearField("doc_string")
            del value.metadata_props[:]


def _strip(graph: GraphProto) -> None:
    graph.ClearField("doc_string")
    del graph.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.ClearField("doc_string")
        del value.metadata_props[:]
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Collection[NodeProto]) -> None:
    for node in nodes:
        node.ClearField("doc_string")
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
        for subgraph in subgraphs(node):
            _strip(subgraph)


def shorten_names(model: ModelProto, kept: Collection[str]) -> None:
    """Give inner tensors the shortest names there are, in place.

    Parameters
    ----------
    model : the model; local functions have names of their own, which stay
    kept : tensors that keep their names, beside the inputs and outputs of the graph and what subgraphs read or define
    """
    graph = model.graph
    fixed = {value.name for value in (*graph.input, *graph.output)} | set(kept)
    for node in graph.node:
        for subgraph in subgraphs(node):
            fixed.update(free_names(subgraph))
            fixed.update(name for inner in walk(subgraph.node) for name in (*inner.input, *inner.output))
            fixed.update(value.name for value in (*subgraph.input, *subgraph.output, *subgraph.initializer))
    short = _short_names(fixed)
    renamed: dict[str, str] = {}
    for name in (
        *(tensor.name for tensor in graph.initializer),
        *(name for node in graph.node for name in node.output),
    ):
        if name and name not in fixed:
            renamed[name] = next(short)
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name in renamed:
                    names[index] = renamed[name]
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)


def _short_names(taken: Collection[str]) -> Iterator[str]:
    """Yield a, b, … z, a0, a1 …, a letter first, without the names that are taken."""
    names = list(string.ascii_lowercase)
    while True:
        yield from (name for name in names if name not in taken)
        names = [name + digit for name in names for digit in _DIGITS]
