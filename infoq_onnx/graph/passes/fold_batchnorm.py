r"""Fold BatchNormalization into the weights of the preceding linear layer.

For a layer y = W∗x + b and z = γ·(y − μ)/√(σ² + ε) + β per output channel, with s = γ/√(σ² + ε):

    z = (s·W)∗x + (s·(b − μ) + β)

The computation is in float64, and the result is rounded once. The output channels are axis 0 of a Conv weight and of a
canonical Gemm weight (transB = 1). They are axis 1 of a ConvTranspose weight [Cin, Cout/g, …], where each of the g
groups of input channels has its own Cout/g output channels.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from infoq_onnx.graph.editing import attribute, input_at, opset_of, to_array
from infoq_onnx.graph.editor import Editor


def fold_batchnorm(model: onnx.ModelProto) -> int:
    """Fold each BatchNormalization in inference mode that alone reads the output of a Conv, ConvTranspose or Gemm.

    Returns
    -------
    int
        Number of BatchNormalization nodes folded.
    """
    editor, opset = Editor(model.graph), opset_of(model)
    candidates = [node for node in editor.nodes if node.op_type == "BatchNormalization" and not node.domain]
    folded = sum(_fold(editor, node, opset) for node in candidates)
    editor.apply()
    return folded


def _fold(editor: Editor, norm: NodeProto, opset: int) -> bool:
    layer, constants = editor.producer.get(norm.input[0]), editor.constants
    if layer is None or not _is_linear(layer) or editor.uses(layer.output[0]) != 1 or not _at_inference(norm, opset):
        return False
    if any(editor.uses(name) for name in norm.output[1:] if name):
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
    editor.set_constant(layer, 1, _scaled(layer, weight, scale).astype(kind))
    editor.set_constant(layer, 2, (scale * (offset - mean) + beta).astype(kind), f"{layer.input[1]}_bias")
    editor.remove([norm])
    editor.set_output(layer, 0, norm.output[0])
    return True


def _at_inference(norm: NodeProto, opset: int) -> bool:
    # before opset 14, a second output enables training mode
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
