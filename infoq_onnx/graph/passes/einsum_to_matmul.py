"""An Einsum that is a product of matrices becomes a MatMul.

    …ik, …kj → …ij     MatMul
    …ik, …jk → …ij     MatMul of a transpose
    …k, kj → …j        MatMul with a matrix
    …k, jk → …j        the same of its transpose

"…" stands for axes that both operands have, in this order. Other equations stay as they are, and in float.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto, helper

from infoq_onnx.graph.editing import attribute
from infoq_onnx.graph.editor import Editor


def einsum_to_matmul(model: onnx.ModelProto) -> int:
    """Rewrite every Einsum of two operands that is a product of matrices.

    Returns
    -------
    int
        Number of nodes replaced.
    """
    editor = Editor(model.graph)
    replaced = 0
    for node in editor.nodes:
        if node.op_type == "Einsum" and not node.domain and (parts := _parts(editor, node)):
            editor.replace(node, [node], parts)
            replaced += 1
    editor.apply()
    return replaced


def _parts(editor: Editor, node: NodeProto) -> list[NodeProto]:
    equation = attribute(node, "equation", b"").decode().replace(" ", "")
    if "..." in equation or "->" not in equation or len(node.input) != 2:
        return []
    operands, result = equation.split("->")
    left, right = operands.split(",")
    if any(len(set(letters)) != len(letters) for letters in (left, right, result)):
        return []
    transposed = _is_transposed(left, right, result)
    if transposed is None:
        return []
    other = node.input[1]
    parts = []
    if transposed:
        rank = len(right)
        other = editor.fresh_name(f"{node.output[0]}_transposed")
        perm = [*range(rank - 2), rank - 1, rank - 2]
        parts.append(helper.make_node("Transpose", [node.input[1]], [other], name=other, perm=perm))
    parts.append(helper.make_node("MatMul", [node.input[0], other], list(node.output), name=node.name))
    return parts


def _is_transposed(left: str, right: str, result: str) -> bool | None:
    """Return whether the second operand of a product of matrices is transposed; None where it is no such product."""
    if len(left) < 2 or len(right) < 2:
        return None
    inner, row, column = left[-1], right[-2], right[-1]
    shared = right[:-2]
    # a matrix serves for all leading axes, more axes have to agree
    if shared and shared != left[:-2]:
        return None
    if row == inner and result == left[:-1] + column and column not in left:
        return False
    if column == inner and result == left[:-1] + row and row not in left:
        return True
    return None
