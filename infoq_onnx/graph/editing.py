"""Small helpers that every pass uses: look things up in an ONNX graph, and change them in place.

A node reads its own inputs and, when it carries subgraphs (If, Loop, Scan), whatever those take from outside: `reads`
counts both, and `rename_uses` changes both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

QUANTIZABLE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators of the default domain whose nodes may be layers: those that multiply by weights, or two activations."""

MINIMUM_IR_VERSION = 8
"""The oldest IR version written: every onnxruntime this package admits reads it."""


def opset_of(model: ModelProto) -> int:
    """Version of the default operator set that a model imports; 0 when it imports none."""
    return next((entry.version for entry in model.opset_import if is_standard(entry.domain)), 0)


def is_standard(domain: str) -> bool:
    """Whether a domain is that of ONNX's own operators, which has two spellings."""
    return domain in ("", "ai.onnx")


def stamp_ir_version(model: ModelProto) -> None:
    """Stamp the lowest IR version that holds the model's operator sets: onnxruntime refuses IR versions it has not met.

    ``onnx.helper.make_model`` stamps the newest one whatever the content.
    """
    model.ir_version = max(
        MINIMUM_IR_VERSION, helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    )


# ------------------------------------------------------------------------------------------------------------- looking


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs a node carries as attributes."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def walk(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield every node, those in subgraphs included."""
    for node in nodes:
        yield node
        for subgraph in subgraphs(node):
            yield from walk(subgraph.node)


def reads(node: NodeProto) -> list[str]:
    """Names of the tensors a node needs, without repetition: its inputs, and what its subgraphs take from outside."""
    names = dict.fromkeys(name for name in node.input if name)
    for subgraph in subgraphs(node):
        names.update(dict.fromkeys(free_names(subgraph)))
    return list(names)


def free_names(graph: GraphProto) -> Iterator[str]:
    """Yield the names of the tensors that a subgraph takes from outside, some of them more than once."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        yield from (name for name in reads(node) if name not in own)
        own.update(node.output)
    yield from (value.name for value in graph.output if value.name not in own)


def consumers_of(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Nodes that read each tensor, in graph order; a node that reads a tensor twice is listed once."""
    consumers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in reads(node):
            consumers.setdefault(name, []).append(node)
    return consumers


def producers_of(graph: GraphProto) -> dict[str, NodeProto]:
    """The node that writes each tensor."""
    return {name: node for node in graph.node for name in node.output if name}


def initializers_of(graph: GraphProto) -> dict[str, TensorProto]:
    """The graph's constants by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def output_names(graph: GraphProto) -> set[str]:
    """Names of the graph's outputs."""
    return {value.name for value in graph.output}


def uses_of(graph: GraphProto) -> Counter[str]:
    """How often each tensor is used: once for every input slot, subgraph reference and graph output."""
    uses: Counter[str] = Counter(value.name for value in graph.output)
    for node in graph.node:
        slots = [name for name in node.input if name]
        uses.update(slots)
        uses.update(set(reads(node)) - set(slots))
    return uses


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Value of a node's attribute (strings as bytes, tensors as TensorProto), or `default`."""
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def input_at(node: NodeProto, index: int) -> str:
    """Name of a node's input, or "" when it is left out."""
    return node.input[index] if index < len(node.input) else ""


def to_array(tensor: TensorProto) -> NDArray[Any]:
    """Values of a constant."""
    return numpy_helper.to_array(tensor)


Dimension = int | str | None
"""A size, the name of a free dimension, or None for an unknown one."""


class Inferred(NamedTuple):
    """What shape inference finds out about the tensors of a graph."""

    shapes: dict[str, tuple[Dimension, ...]]
    """Of every tensor of known rank, constants included."""
    types: dict[str, int]
    """ONNX element types (TensorProto.FLOAT, …)."""


def infer(model: ModelProto) -> Inferred:
    """Infer shapes and element types, following shape arithmetic as far as onnx can."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: dict[str, tuple[Dimension, ...]] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.output, *graph.input):
        types[value.name] = value.type.tensor_type.elem_type
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(_dimension(dim) for dim in value.type.tensor_type.shape.dim)
    return Inferred(shapes, types)


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> Dimension:
    # some exporters write a free dimension as 0 or −1
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value > 0 else None
    return dim.dim_param or None


# ------------------------------------------------------------------------------------------------------------ changing


def fresh_name(graph: GraphProto, base: str) -> str:
    """`base`, or `base_2`, `base_3`, … when tensors of the graph or its subgraphs are called so already."""
    taken = {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    for node in walk(graph.node):
        taken.update(node.input, node.output)
    return unused_name(base, taken)


def unused_name(base: str, taken: set[str]) -> str:
    """`base`, or the first of `base_2`, `base_3`, … that is not in `taken`."""
    name, count = base, 2
    while name in taken:
        name, count = f"{base}_{count}", count + 1
    return name


def add_initializer(graph: GraphProto, base: str, array: NDArray[Any]) -> str:
    """Add a constant under a name not yet taken, stored as raw data, and return the name."""
    name = fresh_name(graph, base)
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return name


def rename_uses(graph: GraphProto, old: str, new: str) -> None:
    """Let every node that reads `old`, in subgraphs too, read `new` instead. Graph outputs keep their names."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for subgraph in subgraphs(node):
            if old in set(free_names(subgraph)):
                rename_uses(subgraph, old, new)
                for value in subgraph.output:
                    if value.name == old:
                        value.name = new


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Let the graph consist of these nodes, in this order."""
    kept = [_copy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def remove_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Take nodes out of the graph."""
    # holding the wrappers keeps id() of each node the same
    removed = {id(node): node for node in nodes}
    for index in reversed(range(len(graph.node)) if removed else ()):
        if id(graph.node[index]) in removed:
            del graph.node[index]


def with_initializers(model: ModelProto, values: Mapping[str, NDArray[Any]]) -> ModelProto:
    """Copy a model with other values for some initializers; large ones had better be replaced so than in place.

    What is overwritten in a message, protobuf keeps until the whole message goes.
    """
    copy = ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _put(copy, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _put(copy.graph, field.name, value)
    for one in model.graph.initializer:
        copy.graph.initializer.append(
            numpy_helper.from_array(values[one.name], one.name) if one.name in values else one
        )
    return copy


def _put(message: Any, name: str, value: Any) -> None:
    """Set a field of a message, whatever kind it is of."""
    if isinstance(value, str | bytes | int | float):
        setattr(message, name, value)
    else:
        getattr(message, name).MergeFrom(value)


def set_initializers(model: ModelProto, values: Mapping[str, NDArray[Any]]) -> None:
    """Replace initializers of a model, in place."""
    for initializer in model.graph.initializer:
        if initializer.name in values:
            initializer.CopyFrom(numpy_helper.from_array(values[initializer.name], initializer.name))


def remove_initializers(graph: GraphProto, names: set[str]) -> None:
    """Take constants out of the graph."""
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in names:
            del graph.initializer[index]


def add_metadata(model: ModelProto, entries: Mapping[str, str]) -> None:
    """Add entries to a model's metadata_props, or replace those of the same name; all others stay."""
    present = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, {**present, **entries})


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def expose(model: ModelProto, tensors: Iterable[str]) -> ModelProto:
    """Return a copy of the model with further outputs; onnxruntime infers their types.

    Parameters
    ----------
    model : ModelProto
        Any model; it is not changed.
    tensors : iterable of str
        Tensors to add as outputs behind the present ones, in this order; those that are outputs already stay where
        they are.
    """
    exposed = ModelProto()
    exposed.CopyFrom(model)
    present = {value.name for value in exposed.graph.output}
    exposed.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(tensors) if name not in present)
    return exposed
