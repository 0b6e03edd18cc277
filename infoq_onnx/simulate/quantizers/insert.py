"""Insert quantizers into a graph: QuantizeLinear → Clip → DequantizeLinear at the positions from `placement`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from infoq_onnx.graph.editing import replace_nodes
from infoq_onnx.graph.graph import Graph
from infoq_onnx.schema import BASELINE_BITS, Network, Quantizer
from infoq_onnx.simulate.quantizers.placement import Placement


@dataclass(frozen=True)
class Quantizers:
    """The activation quantizers of one configuration of the network."""

    storage: dict[str, Quantizer]
    """By storage tensor; 8 bits each."""
    groups: dict[str, Quantizer]
    """By activation group; at 8 bits identical to the storage quantizer of the group's tensor."""


@dataclass(frozen=True)
class QuantizerNames:
    """Names of an inserted quantizer's constants; feeding other values for them changes its grid."""

    scale: str
    zero_point: str
    largest: str


def group_names(group: str) -> QuantizerNames:
    """Return the names of the constants of a group's own quantizer."""
    return QuantizerNames(f"{group}/group/scale", f"{group}/group/zero_point", f"{group}/group/largest")


def grid_of_group(group: str, quantizer: Quantizer) -> dict[str, npt.NDArray[np.generic]]:
    """Return the values to feed so that a group's own quantizer has a given grid.

    Parameters
    ----------
    group : the activation group
    quantizer : the grid

    Returns
    -------
    dict of str to scalar array
        By name, see `group_names`.
    """
    names = group_names(group)
    return {
        names.scale: np.array(quantizer.scale, dtype=np.float32),
        names.zero_point: np.array(quantizer.zero_point, dtype=np.uint8),
        names.largest: np.array((1 << quantizer.bits) - 1, dtype=np.uint8),
    }


def insert_quantizers(graph: Graph, network: Network, placement: Placement, quantizers: Quantizers) -> onnx.ModelProto:
    """Return a copy of the model with quantizers on its activations.

    Parameters
    ----------
    graph : the normalised float graph
    network, placement : from `find_network` and `place`
    quantizers : the grids

    Returns
    -------
    onnx.ModelProto
        The tensors of `graph` keep their names; each name refers to the tensor *before* its quantizer.
    """
    builder = _Builder()
    seen_as: dict[str, str] = {}
    for tensor in (*placement.storage, *placement.inherited):
        direct = tensor in placement.direct
        if direct:
            builder.add(tensor, tensor, f"{tensor}/group", quantizers.groups[tensor])
            seen_as[tensor] = f"{tensor}/group/values"
        else:
            root = placement.root(tensor)
            builder.add(tensor, tensor, f"{tensor}/storage", quantizers.storage[root], shared=f"{root}/storage")
            seen_as[tensor] = f"{tensor}/storage/values"
    group_seen_as = {name: seen_as[name] for name in quantizers.groups}
    for name, quantizer in quantizers.groups.items():
        if name not in placement.direct and quantizer.bits < BASELINE_BITS:
            builder.add(name, seen_as[name], f"{name}/group", quantizer)
            group_seen_as[name] = f"{name}/group/values"

    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.node[:]
    layers = {layer.name: layer for layer in network.layers}
    model.graph.node.extend(builder.nodes_of.get(graph.input, []))
    for original in graph.nodes:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        layer = layers.get(node.name)
        for index, tensor in enumerate(node.input):
            if layer is not None and tensor in layer.groups:
                node.input[index] = group_seen_as[tensor]
            elif tensor in seen_as:
                node.input[index] = seen_as[tensor]
        model.graph.node.append(node)
        for output in node.output:
            model.graph.node.extend(builder.nodes_of.get(output, []))
    model.graph.initializer.extend(builder.initializers.values())
    return model


def quantize_group(model: onnx.ModelProto, network: Network, group: str) -> None:
    """Insert a quantizer before the layers of one group, in place. Its grid is an input of the model.

    Parameters
    ----------
    model : the normalised graph, or a part of it that contains the group's tensor; it gets three more inputs, named by
        `group_names`
    network : the network's layers
    group : activation group whose layers read the quantized tensor; other readers still read the tensor itself
    """
    names = group_names(group)
    builder = _Builder()
    builder.add(group, group, f"{group}/group", Quantizer(BASELINE_BITS, 1.0, 0), clip=True)
    fed = (names.scale, names.zero_point, names.largest)
    for name in fed:
        tensor = builder.initializers.pop(name)
        model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, []))
    model.graph.initializer.extend(builder.initializers.values())
    readers = {layer.name for layer in network.layers if group in layer.groups}
    nodes = list(model.graph.node)
    for node in nodes:
        if node.name in readers:
            for index, tensor in enumerate(node.input):
                if tensor == group:
                    node.input[index] = f"{group}/group/values"
    written = next((i + 1 for i, node in enumerate(nodes) if group in node.output), 0)
    nodes[written:written] = builder.nodes_of[group]
    replace_nodes(model.graph, nodes)


class _Builder:
    """Collects the nodes and initializers to insert after each tensor."""

    def __init__(self) -> None:
        self.nodes_of: dict[str, list[onnx.NodeProto]] = {}
        self.initializers: dict[str, onnx.TensorProto] = {}

    def add(
        self, behind: str, source: str, prefix: str, quantizer: Quantizer, *, clip: bool = False, shared: str = ""
    ) -> None:
        """Add a quantizer for a tensor.

        Parameters
        ----------
        behind : tensor whose producer the new nodes follow
        source : tensor to quantize
        prefix : prefix of the new nodes' names
        quantizer : the grid
        clip : whether to add the Clip at any bit-width and to give the quantizer constants of its own, so that they can
            be fed; otherwise quantizers share integer constants of equal value
        shared : prefix of the constants' names, to share them between quantizers; empty: `prefix`
        """
        constants = shared or prefix
        zero, top = quantizer.zero_point, (1 << quantizer.bits) - 1
        scale = self._constant(f"{constants}/scale", np.float32(quantizer.scale))
        zero_point = self._constant(f"{constants}/zero_point" if clip else f"quantizer/{zero}", np.uint8(zero))
        codes = f"{prefix}/codes"
        nodes = self.nodes_of.setdefault(behind, [])
        nodes.append(_node("QuantizeLinear", [source, scale, zero_point], codes))
        if clip or quantizer.bits < BASELINE_BITS:
            # at 8 bits, uint8 saturates at 255 by itself; fewer bits need a Clip, which keeps the path in integers
            smallest = self._constant("quantizer/0", np.uint8(0))
            largest = self._constant(f"{constants}/largest" if clip else f"quantizer/{top}", np.uint8(top))
            nodes.append(_node("Clip", [codes, smallest, largest], f"{prefix}/clipped"))
            codes = f"{prefix}/clipped"
        nodes.append(_node("DequantizeLinear", [codes, scale, zero_point], f"{prefix}/values"))

    def _constant(self, name: str, value: np.generic) -> str:
        self.initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name


def _node(op_type: str, inputs: list[str], output: str) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=output)
