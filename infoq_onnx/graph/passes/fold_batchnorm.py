r"""BatchNormalization behind a linear layer is folded into the layer's weights.

For a layer y = W∗x + b and z = γ·(y − μ)/√(σ² + ε) + β per output channel, with s = γ/√(σ² + ε):

    z = (s·W)∗x + (s·(b − μ) + β)

computed in float64 and rounded once. Output channels lie on axis 0 of a Conv weight and of a canonical Gemm weight
(transB = 1); on axis 1 of a ConvTranspose weight [Cin, Cout/g, …], where each of the g groups of input channels has its
own Cout/g outputs.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto

from infoq_onnx.graph.editing import (
    attribute,
    initializers_of,
    input_at,
    opset_of,
    producers_of,
    remove_nodes,
    set_constant,
    to_array,
    uses_of,
)


def fold_batchnorm(model: onnx.ModelProto) -> int:
    """Fold every inference-mode BatchNormalization whose input comes from a Conv, ConvTranspose or Gemm alone.

    Returns
    -------
    int
        Number of BatchNormalization nodes folded.
    """
    graph = model.graph
    candidates = [node for node in graph.node if node.op_type == "BatchNormalization" and not node.domain]
    return sum(_fold(graph, node, opset_of(model)) for node in candidates)


def _fold(graph: GraphProto, norm: NodeProto, opset: int) -> bool:
    layer = producers_of(graph).get(norm.input[0])
    constants = initializers_of(graph)
    uses = uses_of(graph)
    if layer is None or not _is_linear(layer) or uses[layer.output[0]] != 1 or not _at_inference(norm, opset):
        return False
    if any(uses[name] for name in norm.output[1:] if name):
        return False
    names = [layer.input[1], *norm.input[1:5]]
    if bias := input_at(layer, 2):
        names.append(bias)
    if any(name not in constants for name in names):
        return False

    weight, gamma, beta, mean, variance, *biases = (to_array(constants[name]).astype(np.float64) for name in names)
    if any(value.shape != gamma.shape for value in biases):
        return False
    scale = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    offset = biases[0] if biases else np.zeros_like(mean)
    kind = to_array(constants[layer.input[1]]).dtype
    set_constant(graph, layer, 1, _scaled(layer, weight, scale).astype(kind))
    set_constant(graph, layer, 2, (scale * (offset - mean) + beta).astype(kind), f"{layer.input[1]}_bias")
    layer.output[0] = norm.output[0]
    remove_nodes(graph, [norm])
    return True


def _at_inference(norm: NodeProto, opset: int) -> bool:
    # before opset 14 a second output asks for training
    if opset >= 14:
        return not attribute(norm, "training_mode", 0)
    return not any(norm.output[1:])


def _is_linear(layer: NodeProto) -> bool:
    if layer.domain:
        return False
    if layer.op_type == "Gemm":
        factors = attribute(layer, "alpha", 1.0), attribute(layer, "beta", 1.0)
        return factors == (1.0, 1.0) and bool(attribute(layer, "transB", 0))
    return layer.op_type in ("Conv", "ConvTranspose")


def _scaled(layer: NodeProto, weight: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    if layer.op_type != "ConvTranspose":
        columns = scale.reshape(-1, *[1] * (weight.ndim - 1))
        return weight * columns
    group = attribute(layer, "group", 1)
    grouped = weight.reshape(group, -1, *weight.shape[1:])
    columns = scale.reshape(group, 1, -1, *[1] * (weight.ndim - 2))
    return (grouped * columns).reshape(weight.shape)
