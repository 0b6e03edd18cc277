"""Helpers shared by all passes: query an ONNX graph and edit it in place.

A node reads its own inputs. A node with subgraphs (If, Loop, Scan) also reads the outer tensors that its subgraphs use.
`reads` returns both kinds, and `rename_uses` renames both kinds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

QUANTIZABLE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators of the default domain that can be layers: they multiply activations by weights or by activations."""

MINIMUM_IR_VERSION = 8
"""Oldest IR version that is written. Every supported onnxruntime version can read it."""


def opset_of(model: ModelProto) -> int:
    """Return the version of the default operator set that a model imports; 0 if it imports none."""
    return next((entry.version for entry in model.opset_import if is_standard(entry.domain)), 0)


def is_standard(domain: str) -> bool:
    """Return whether a domain is the default ONNX domain, which has two spellings."""
    return domain in ("", "ai.onnx")


def stamp_ir_version(model: ModelProto) -> None:
    """Set the lowest IR version that supports the model's operator sets, but at least `MINIMUM_IR_VERSION`.

    onnxruntime rejects IR versions newer than those it knows, and ``onnx.helper.make_model`` always sets the newest.
    """
    model.ir_version = max(
        MINIMUM_IR_VERSION, helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    )


# ------------------------------------------------------------------------------------------------------------- looking


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the subgraphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def walk(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield every node, including nodes in subgraphs."""
    for node in nodes:
        yield node
        for subgraph in subgraphs(node):
            yield from walk(subgraph.node)


def reads(node: NodeProto) -> list[str]:
    """Return the distinct names of the tensors a node reads: its inputs and the outer tensors its subgraphs use."""
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
    """Map each tensor to the nodes that read it, in graph order. A node that reads a tensor twice appears once."""
    consumers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in reads(node):
            consumers.setdefault(name, []).append(node)
    return consumers


def producers_of(graph: GraphProto) -> dict[str, NodeProto]:
    """Map each tensor to the node that writes it."""
    return {name: node for node in graph.node for name in node.output if name}


def initializers_of(graph: GraphProto) -> dict[str, TensorProto]:
    """Map names to the graph's initializers."""
    return {tensor.name: tensor for tensor in graph.initializer}


def output_names(graph: GraphProto) -> set[str]:
    """Return the names of the graph's outputs."""
    return {value.name for value in graph.output}


def uses_of(graph: GraphProto) -> Counter[str]:
    """Count the uses of each tensor.

    Each node input counts, as does each graph output and each node whose subgraphs read the tensor.
    """
    uses: Counter[str] = Counter(value.name for value in graph.output)
    for node in graph.node:
        slots = [name for name in node.input if name]
        uses.update(slots)
        uses.update(set(reads(node)) - set(slots))
    return uses


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of a node's attribute (strings as bytes, tensors as TensorProto), or `default` if absent."""
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def input_at(node: NodeProto, index: int) -> str:
    """Return the name of the node's input at position `index`; "" if that input is omitted."""
    return node.input[index] if index < len(node.input) else ""


def to_array(tensor: TensorProto) -> NDArray[Any]:
    """Return the values of a constant tensor."""
    return numpy_helper.to_array(tensor)


_LONGEST_VALUE = 1024
"""Elements up to which a constant may take part in shape arithmetic."""
Dimension = int | str | None
"""The size of a dimension, the name of a free dimension, or None if unknown."""


class Inferred(NamedTuple):
    """Shapes and element types of a graph's tensors, as found by shape inference."""

    shapes: dict[str, tuple[Dimension, ...]]
    """Shape of every tensor of known rank, including constants."""
    types: dict[str, int]
    """ONNX element type (TensorProto.FLOAT, …) of each tensor."""


def infer(model: ModelProto) -> Inferred:
    """Infer shapes and element types, with onnx's data propagation through shape arithmetic."""
    graph = onnx.shape_inference.infer_shapes(_without_large_values(model), data_prop=True).graph
    shapes: dict[str, tuple[Dimension, ...]] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.output, *graph.input):
        types[value.name] = value.type.tensor_type.elem_type
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(_dimension(dim) for dim in value.type.tensor_type.shape.dim)
    return Inferred(shapes, types)


def _without_large_values(model: ModelProto) -> ModelProto:
    """Copy a model with its large constants as inputs: shape inference needs their shapes only, and copies the rest."""
    copy = _without_initializers(model)
    inputs = {value.name for value in model.graph.input}
    for one in model.graph.initializer:
        if math.prod(one.dims) <= _LONGEST_VALUE:
            copy.graph.initializer.append(one)
        elif one.name not in inputs:
            copy.graph.input.append(helper.make_tensor_value_info(one.name, one.data_type, one.dims))
    return copy


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> Dimension:
    # some exporters write a free dimension as 0 or −1
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value > 0 else None
    return dim.dim_param or None


# ------------------------------------------------------------------------------------------------------------ changing


def unused_name(base: str, taken: set[str]) -> str:
    """Return the first of `base`, `base_2`, `base_3`, … that is not in `taken`."""
    name, count = base, 2
    while name in taken:
        name, count = f"{base}_{count}", count + 1
    return name


def rename_uses(graph: GraphProto, old: str, new: str) -> None:
    """Replace `old` with `new` in the inputs of all nodes, including subgraphs. Graph outputs keep their names."""
    for node in graph.node:
        rename_reads(node, old, new)


def rename_reads(node: NodeProto, old: str, new: str) -> None:
    """Replace `old` with `new` among the tensors that a node reads, itself or in its subgraphs."""
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
    """Replace the nodes of the graph with copies of `nodes`, in this order."""
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
    """Return a copy of a model with new values for some initializers.

    Prefer this function to `set_initializers` for large initializers: protobuf does not free overwritten data until the
    whole message is freed.

    Parameters
    ----------
    model : any model; it is not changed
    values : new values by initializer name

    Returns
    -------
    ModelProto
    """
    copy = _without_initializers(model)
    for one in model.graph.initializer:
        copy.graph.initializer.append(
            numpy_helper.from_array(values[one.name], one.name) if one.name in values else one
        )
    return copy


def _without_initializers(model: ModelProto) -> ModelProto:
    """Copy everything of a model but its initializers."""
    copy = ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _put(copy, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _put(copy.graph, field.name, value)
    return copy


def _put(message: Any, name: str, value: Any) -> None:
    """Set a field of a message, whether the field is a scalar, a message or repeated."""
    if isinstance(value, str | bytes | int | float):
        setattr(message, name, value)
    else:
        getattr(message, name).MergeFrom(value)


def set_initializers(model: ModelProto, values: Mapping[str, NDArray[Any]]) -> None:
    """Replace the values of initializers, given by name, in place. See `with_initializers` for large ones."""
    for initializer in model.graph.initializer:
        if initializer.name in values:
            initializer.CopyFrom(numpy_helper.from_array(values[initializer.name], initializer.name))


def remove_initializers(graph: GraphProto, names: set[str]) -> None:
    """Remove the named initializers from the graph."""
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in names:
            del graph.initializer[index]


def add_metadata(model: ModelProto, entries: Mapping[str, str]) -> None:
    """Add entries to a model's metadata_props. Entries with the same key are replaced; all others are kept."""
    present = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, {**present, **entries})


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def expose(model: ModelProto, tensors: Iterable[str]) -> ModelProto:
    """Return a copy of a model with additional outputs, whose types onnxruntime infers.

    Parameters
    ----------
    model : any model; it is not changed
    tensors : names of the tensors to append to the outputs, in this order; existing outputs keep their position

    Returns
    -------
    ModelProto
    """
    exposed = ModelProto()
    exposed.CopyFrom(model)
    present = {value.name for value in exposed.graph.output}
    exposed.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(tensors) if name not in present)
    return exposed
