"""Rewrite a dense layer (MatMul, optionally followed by an Add of a bias) as Gemm if its input is a matrix.

onnxruntime has an integer kernel for matrix products that adds a bias and can return float results, but uses it only
for Gemm. onnxruntime also fuses MatMul and Add into Gemm, but only after it has selected the integer kernels.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto, TensorProto, helper

from infoq_onnx.graph.editing import infer
from infoq_onnx.graph.editor import Editor


def matmul_to_gemm(model: onnx.ModelProto) -> int:
    """Rewrite float32 MatMul of [N, K] with a constant [K, M] as Gemm.

    An Add of a constant row [M] or [1, M] is included if it alone reads the product. The Gemm keeps the name of the
    MatMul, and its output the name of the sum or, without an Add, of the product.

    Returns
    -------
    int
        Number of MatMul nodes rewritten.
    """
    editor = Editor(model.graph)
    candidates = [node for node in editor.nodes if _is_product(editor, node)]
    if not candidates:
        return 0
    shapes = infer(model).shapes
    matrices = [node for node in candidates if len(shapes.get(node.input[0], ())) == 2]
    for node in matrices:
        _rewrite(editor, node)
    editor.apply()
    return len(matrices)


def _is_product(editor: Editor, node: NodeProto) -> bool:
    if node.op_type != "MatMul" or node.domain:
        return False
    weight = editor.constants.get(node.input[1])
    if weight is None or len(weight.dims) != 2 or node.input[0] in editor.constants:
        return False
    # onnxruntime has no Gemm for integers; other float types are not rewritten
    return bool(weight.data_type == TensorProto.FLOAT)


def _rewrite(editor: Editor, product: NodeProto) -> None:
    added = _bias_added(editor, product)
    inputs, outputs, replaced = list(product.input), list(product.output), [product]
    if added is not None:
        inputs.append(_other(added, product.output[0]))
        outputs, replaced = list(added.output), [product, added]
    gemm = helper.make_node("Gemm", inputs, outputs, name=product.name, alpha=1.0, beta=1.0, transA=0, transB=0)
    editor.replace(product, replaced, [gemm])


def _bias_added(editor: Editor, product: NodeProto) -> NodeProto | None:
    """Return the Add that is all that reads a product, and adds a constant row."""
    reader = editor.sole_reader(product.output[0])
    if reader is None or reader.op_type != "Add":
        return None
    row = editor.constants.get(_other(reader, product.output[0]))
    outputs = editor.constants[product.input[1]].dims[1]
    return reader if row is not None and list(row.dims) in ([outputs], [1, outputs]) else None


def _other(node: NodeProto, tensor: str) -> str:
    return str(node.input[1] if node.input[0] == tensor else node.input[0])
