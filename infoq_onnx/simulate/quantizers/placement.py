"""Placement of quantizers in a graph.

There are two kinds of quantizers. A *storage* quantizer (always 8 bits) is placed on every tensor that must be uint8
for its neighbours to run as integer kernels. A *group* quantizer (2 to 8 bits, decided by the allocation) is placed
before the layers of one activation group.

Storage tensors are, in topological order:

a. the input of every layer;
b. the output of every convolution, since onnxruntime only builds a QLinearConv between two quantizers. A Relu or Clip
   after the convolution is fused (`fused_activations`): the quantizer is placed after it and does the clipping. The
   outputs of Gemm and MatMul need no quantizer, because their integer kernels can write float;
c. the output of every operator with an integer kernel whose inputs are all quantized (residual Add, pooling, Concat …).

Tensors that the first output does not depend on, such as those of an auxiliary head, get no quantizer.

An operator that only moves values (Reshape, MaxPool, Slice …) keeps the grid of its input: its output *inherits* the
input's quantizer, and no value is rounded twice. A tensor that only a Concat reads is *joined*: it takes the 8-bit grid
of the Concat's output, so that the Concat only copies bytes.

If the layers of a group are the only readers of their tensor, the group quantizer replaces the storage quantizer (the
group is *direct*). Otherwise, for example where a shortcut reads the same tensor, the tensor is stored at 8 bits and
requantized only for the layers, so that low-bit inputs do not degrade the residual stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from infoq_onnx.graph.editing import attribute
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.operators import CONVOLUTIONS, fills_with_zero, value_readers
from infoq_onnx.schema import Network
from infoq_onnx.simulate.quantizers.fused_activations import behind_activation, is_fused

_KEEPS_GRID = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "MaxPool",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators whose outputs are values of their first input, so that they keep its grid."""
_INTEGER = frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid", "Softmax"})
"""Operators with an integer kernel in onnxruntime whose output has its own grid."""


@dataclass(frozen=True)
class Placement:
    """Quantizer positions of one graph. Tensors are named as in the normalised graph."""

    storage: tuple[str, ...]
    """Tensors with their own 8-bit quantizer, in topological order."""
    inherited: dict[str, str]
    """Tensor → storage tensor whose quantizer it inherits."""
    direct: frozenset[str]
    """Groups whose quantizer replaces the storage quantizer of their tensor."""
    fused: dict[str, str]
    """Output of a fused Relu or Clip, which has a quantizer → input of the Relu or Clip."""
    joined: dict[str, str]
    """Storage tensor that only a Concat reads → output of the Concat, in topological order."""

    def root(self, tensor: str) -> str:
        """Return the storage tensor whose 8-bit quantizer applies to `tensor`."""
        return self.inherited.get(tensor, tensor)


def place(graph: Graph, network: Network) -> Placement:
    """Decide where to place quantizers.

    Parameters
    ----------
    graph : the normalised graph
    network : the graph's layers and groups, from `find_network`

    Returns
    -------
    Placement
    """
    groups = {group.name for group in network.groups}
    layer_of = {layer.name: layer for layer in network.layers}
    storage: list[str] = [graph.input] if graph.input in groups else []
    inherited: dict[str, str] = {}
    fused: dict[str, str] = {}
    wanted: set[str] = set()
    leading = graph.ancestors(graph.output)

    def quantized(tensor: str) -> bool:
        return tensor in inherited or tensor in stored

    stored = set(storage)
    for node in graph.nodes:
        source = node.input[0] if node.input else ""
        for output in node.output:
            # outputs of the graph stay float, unless a layer also reads them
            own = output in graph.outputs and output not in groups
            if own or output not in leading or not _is_float(graph, output):
                continue
            if _keeps_grid(graph, node) and quantized(source):
                inherited[output] = inherited.get(source, source)
                continue
            is_convolution = node.op_type in CONVOLUTIONS and node.name in layer_of
            if is_convolution or (node.op_type in _INTEGER and all(quantized(name) for name in node.input if name)):
                wanted.add(behind_activation(graph, output))
            if output in groups or output in wanted:
                storage.append(output)
                stored.add(output)
                if is_fused(graph, node):
                    fused[output] = source

    def is_direct(name: str) -> bool:
        return name in stored and all(
            reader.name in layer_of and name in layer_of[reader.name].groups for reader in value_readers(graph, name)
        )

    direct = frozenset(name for name in groups if is_direct(name))
    joined = {
        name: node.output[0]
        for node in graph.nodes
        if node.op_type == "Concat" and node.output[0] in stored
        for name in node.input
        if name in stored and name not in groups and value_readers(graph, name) == [node]
    }
    return Placement(tuple(storage), inherited, direct, fused, joined)


def _is_float(graph: Graph, tensor: str) -> bool:
    return graph.dtypes.get(tensor) == np.float32


def _keeps_grid(graph: Graph, node: onnx.NodeProto) -> bool:
    """Return whether every output value is a value of the (first) input, or 0."""
    if node.op_type == "Pad":
        return attribute(node, "mode", b"constant") != b"constant" or fills_with_zero(graph, node)
    if node.op_type == "Gather":
        return node.input[0] not in graph.initializers
    return node.op_type in _KEEPS_GRID
