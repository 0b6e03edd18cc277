"""Many changes to one graph in linear time: readers, producers and names are indexed once and kept up to date."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from infoq_onnx.graph.editing import (
    initializers_of,
    output_names,
    producers_of,
    reads,
    rename_reads,
    replace_nodes,
    unused_name,
    walk,
)


class Editor:
    """A graph that is being changed.

    Changes to what nodes read show at once. Nodes that are removed or added change the graph with `apply`.

    Attributes
    ----------
    nodes : list of NodeProto
        The nodes at the start, in order.
    outputs : set of str
        Names of the graph outputs.
    constants : dict of str to TensorProto
        The initializers.
    producer : dict of str to NodeProto
        The node that writes each tensor.
    """

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        # holding the wrappers keeps id() of each node the same
        self.nodes: list[NodeProto] = list(graph.node)
        self.outputs = output_names(graph)
        self.constants: dict[str, TensorProto] = initializers_of(graph)
        self.producer = producers_of(graph)
        self._readers: dict[str, dict[int, NodeProto]] = {}
        self._gone: set[int] = set()
        self._before: dict[int, list[NodeProto]] = {}
        self._taken: set[str] | None = None
        for node in self.nodes:
            self._index(node)

    # ---------------------------------------------------------------------------------------------------------- looking

    def readers(self, tensor: str) -> list[NodeProto]:
        """Nodes that read a tensor, themselves or in a subgraph, each once."""
        return list(self._readers.get(tensor, {}).values())

    def uses(self, tensor: str) -> int:
        """How often a tensor is used: once for every input slot, subgraph reference and graph output."""
        slots = sum(max(1, list(node.input).count(tensor)) for node in self.readers(tensor))
        return slots + (tensor in self.outputs)

    def sole_reader(self, tensor: str) -> NodeProto | None:
        """The one node that reads a tensor; None where several do, none does, or the tensor is a graph output."""
        readers = self.readers(tensor)
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    # --------------------------------------------------------------------------------------------------------- changing

    def fresh_name(self, base: str) -> str:
        """`base`, or `base_2`, `base_3`, … where tensors of the graph or its subgraphs have that name."""
        if self._taken is None:
            self._taken = {value.name for value in self.graph.input} | self.outputs | set(self.constants)
            for node in walk(self.nodes):
                self._taken.update(node.input, node.output)
        name = unused_name(base, self._taken)
        self._taken.add(name)
        return name

    def add_constant(self, base: str, array: NDArray[Any]) -> str:
        """Add an initializer under a name not yet taken, stored as raw data, and return the name."""
        name = self.fresh_name(base)
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        self.constants[name] = self.graph.initializer[-1]
        return name

    def set_constant(self, node: NodeProto, index: int, array: NDArray[Any], base: str = "") -> None:
        """Give a node's input new constant values; an initializer that others use too stays as it is for them.

        Parameters
        ----------
        node : NodeProto
            Whose input changes.
        index : int
            Which input; it may be one that was left out so far.
        array : ndarray
            The new values.
        base : str
            Name for the new initializer where the input has none yet.
        """
        while len(node.input) <= index:
            node.input.append("")
        name = node.input[index]
        if name in self.constants and self.uses(name) == 1:
            self.constants[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
        else:
            self.set_input(node, index, self.add_constant(name or base, array))

    def set_input(self, node: NodeProto, index: int, tensor: str) -> None:
        """Let a node's input be another tensor."""
        before = node.input[index]
        node.input[index] = tensor
        if before and before not in reads(node):
            self._readers[before].pop(id(node), None)
        self._readers.setdefault(tensor, {})[id(node)] = node

    def set_output(self, node: NodeProto, index: int, tensor: str) -> None:
        """Let a node write another tensor."""
        if self.producer.get(node.output[index]) is node:
            del self.producer[node.output[index]]
        node.output[index] = tensor
        self.producer[tensor] = node

    def read_instead(self, old: str, new: str) -> None:
        """Let every node that reads `old`, in subgraphs too, read `new` instead. Graph outputs keep their names."""
        moved = self._readers.pop(old, {})
        for node in moved.values():
            rename_reads(node, old, new)
        self._readers.setdefault(new, {}).update(moved)

    def remove(self, nodes: Iterable[NodeProto]) -> None:
        """Take nodes out of the graph."""
        for node in nodes:
            self._gone.add(id(node))
            for name in reads(node):
                self._readers.get(name, {}).pop(id(node), None)
            for name in node.output:
                if self.producer.get(name) is node:
                    del self.producer[name]

    def replace(self, place: NodeProto, removed: Iterable[NodeProto], added: Iterable[NodeProto]) -> None:
        """Remove nodes, and add others where one of them was."""
        self.remove(removed)
        new = list(added)
        self._before.setdefault(id(place), []).extend(new)
        for node in new:
            self._index(node)
            self.producer.update((name, node) for name in node.output if name)

    def apply(self) -> None:
        """Write the nodes back, if any were removed or added."""
        if self._gone or self._before:
            order: list[NodeProto] = []
            for node in self.nodes:
                order += [new for new in self._before.get(id(node), []) if id(new) not in self._gone]
                if id(node) not in self._gone:
                    order.append(node)
            replace_nodes(self.graph, order)

    def _index(self, node: NodeProto) -> None:
        for name in reads(node):
            self._readers.setdefault(name, {})[id(node)] = node
