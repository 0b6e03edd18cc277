"""Extract submodels from a graph and expose its inner tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, ValueInfoProto, helper, numpy_helper

from infoq_onnx.graph.editing import expose, reads
from infoq_onnx.graph.graph import Graph

__all__ = ["cut", "expose", "extract"]


def extract(
    graph: Graph,
    inputs: Sequence[str],
    outputs: Sequence[str],
    constants: Mapping[str, npt.NDArray[np.generic]] | None = None,
) -> onnx.ModelProto:
    """Build the model that computes `outputs` from `inputs`.

    Parameters
    ----------
    graph : Graph
        The complete graph.
    inputs : sequence of str
        Activation tensors (the graph input or inner tensors) or initializers. All become inputs of the model, in this
        order, even if no output depends on them. The batch axis of activations is free if it is free in `graph`.
    outputs : sequence of str
        Activation tensors to compute, in this order. An output that is also in `inputs` is passed through.
    constants : mapping of str to ndarray, optional
        New values for some initializers.

    Returns
    -------
    ModelProto
        The nodes between `inputs` and `outputs`, with the initializers they use.

    Raises
    ------
    ValueError
        An output depends on the graph input but `inputs` does not contain it, or a name is not a tensor of the graph.
    """
    fed = [name for name in inputs if name not in graph.initializers]
    if unknown := [name for name in (*fed, *outputs) if name not in graph.shapes]:
        raise ValueError(f"{unknown[0]!r} is not a tensor of the graph")
    others = constants or {}
    nodes = _between(graph, set(inputs), outputs)
    used = dict.fromkeys(name for node in nodes for name in reads(node))
    part = helper.make_graph(
        nodes,
        graph.model.graph.name,
        [_declared(graph, name) for name in inputs],
        [graph.value_info(name) for name in outputs],
        [
            numpy_helper.from_array(others[name], name) if name in others else graph.initializers[name]
            for name in used
            if name in graph.initializers and name not in inputs
        ],
    )
    return helper.make_model(part, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)


def _declared(graph: Graph, name: str) -> ValueInfoProto:
    tensor = graph.initializers.get(name)
    if tensor is None:
        return graph.value_info(name)
    return helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))


def _between(graph: Graph, inputs: set[str], outputs: Sequence[str]) -> list[NodeProto]:
    needed = set(outputs) - inputs
    nodes = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(name for name in reads(node) if name not in inputs)
    if graph.input in needed:
        raise ValueError(f"the outputs depend on {graph.input!r}, which is not among the inputs {sorted(inputs)}")
    return nodes[::-1]


def cut(graph: Graph, start: Iterable[str]) -> tuple[str, ...]:
    """Find the tensors that must be stored to rerun only the part of the graph downstream of `start`.

    Let D be the nodes that read a tensor in `start` or any tensor computed from one.

    Parameters
    ----------
    graph : Graph
        The complete graph.
    start : iterable of str
        Activation tensors that will change.

    Returns
    -------
    tuple of str
        The activation tensors that D reads and that D does not write or `start` contains, in topological order.
        ``extract(graph, cut(graph, start), outputs)`` reruns D.
    """
    changed = set(start)
    behind = graph.descendants(changed)
    nodes = [node for node in graph.nodes if not behind.isdisjoint(reads(node))]
    written = {name for node in nodes for name in node.output} - changed
    read = {name for node in nodes for name in reads(node) if name not in graph.initializers} - written
    order = (graph.input, *(name for node in graph.nodes for name in node.output))
    return tuple(name for name in order if name in read)
