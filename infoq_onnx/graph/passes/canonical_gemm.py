"""Rewrite Gemm with constant weights in one form: y = A·Wᵀ + b with W of shape [N, K] and b of shape [N].

Gemm computes y = α·A'·B' + β·C, where A' is A or Aᵀ and B' is B or Bᵀ. If B is constant, α·B' is stored as Wᵀ with W of
shape [N, K] and transB = 1. If C is constant and adds the same row to every row of the product, b = β·C. transA is not
changed.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, helper

from infoq_onnx.graph.editing import attribute, input_at, to_array
from infoq_onnx.graph.editor import Editor


def canonical_gemm(model: onnx.ModelProto) -> int:
    """Rewrite Gemm nodes that have a constant weight.

    Returns
    -------
    int
        Number of nodes rewritten.
    """
    editor = Editor(model.graph)
    return sum(
        _rewrite(editor, node)
        for node in editor.nodes
        if node.op_type == "Gemm" and not node.domain and node.input[1] in editor.constants
    )


def _rewrite(editor: Editor, node: NodeProto) -> bool:
    return any([_rewrite_weight(editor, node), _rewrite_bias(editor, node)])


def _rewrite_weight(editor: Editor, node: NodeProto) -> bool:
    alpha, transposed = attribute(node, "alpha", 1.0), attribute(node, "transB", 0)
    if alpha == 1.0 and transposed:
        return False
    weight = to_array(editor.constants[node.input[1]])
    rows = weight if transposed else weight.T
    editor.set_constant(node, 1, (alpha * rows.astype(np.float64)).astype(weight.dtype))
    _set(node, "alpha", 1.0)
    _set(node, "transB", 1)
    return True


def _rewrite_bias(editor: Editor, node: NodeProto) -> bool:
    constant = editor.constants.get(input_at(node, 2))
    beta = attribute(node, "beta", 1.0)
    if constant is None:
        return False
    outputs = editor.constants[node.input[1]].dims[0]
    bias = to_array(constant)
    row = bias.size == 1 or (bias.size == outputs and bias.shape[-1] == outputs)
    if beta == 1.0 and (not row or bias.shape == (outputs,)):
        return False
    scaled = (beta * bias.astype(np.float64)).astype(bias.dtype)
    editor.set_constant(node, 2, np.broadcast_to(scaled.reshape(-1), outputs).copy() if row else scaled)
    _set(node, "beta", 1.0)
    return True


def _set(node: NodeProto, name: str, value: float) -> None:
    for index in reversed(range(len(node.attribute))):
        if node.attribute[index].name == name:
            del node.attribute[index]
    node.attribute.append(helper.make_attribute(name, value))
