"""Number of multiply-accumulate operations (MACs) of a layer."""

from __future__ import annotations

import math

from onnx import NodeProto

from infoq_onnx.graph.graph import Graph


def macs_of(graph: Graph, node: NodeProto, weight: tuple[int, ...]) -> int:
    """Count the MACs of a layer for one image.

    =============  =======================================
    Conv           outputs · (C_in / groups) · kernel
    ConvTranspose  inputs · (C_out / groups) · kernel
    Gemm, MatMul   outputs · K
    =============  =======================================

    Parameters
    ----------
    graph : graph that contains the layer
    node : node of the layer
    weight : shape of the layer's weight; () for a MatMul of two activations

    Returns
    -------
    int
    """
    outputs = graph.elements(node.output[0])
    if node.op_type == "Conv":
        return outputs * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return graph.elements(node.input[0]) * math.prod(weight[1:])
    if node.op_type == "Gemm":
        return outputs * weight[1]
    left = node.input[0]
    shape = graph.initializers[left].dims if left in graph.initializers else graph.shapes[left]
    return outputs * int(shape[-1])
