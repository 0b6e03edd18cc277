"""Rewrite a classifier head given as a 1×1 convolution of a pooled tensor as Flatten and Gemm.

For x of shape [N, Cin, 1, 1], Flatten(Conv(x; W, b)) = Flatten(x)·W₂ᵀ + b with W₂ = W reshaped to [Cout, Cin]. An
integer Gemm can return float logits; an integer convolution cannot. A convolution that ends the model keeps its
output's shape, by a Reshape behind the Gemm.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import NodeProto, helper

from infoq_onnx.graph.editing import Dimension, attribute, infer, to_array
from infoq_onnx.graph.editor import Editor


def pointwise_head(model: onnx.ModelProto) -> int:
    """Rewrite 1×1 Conv on 1×1 input that ends the model, or whose only reader flattens it to [N, Cout].

    The Gemm keeps the name of the Conv, and its output the name of the flattened tensor.

    Returns
    -------
    int
        Number of convolutions rewritten.
    """
    editor = Editor(model.graph)
    candidates = [
        node
        for node in editor.nodes
        if node.op_type == "Conv" and not node.domain and (_flattener(editor, node) or _ends(editor, node))
    ]
    if not candidates:
        return 0
    shapes = infer(model).shapes
    rewritten = sum(_rewrite(editor, node, shapes) for node in candidates)
    editor.apply()
    return rewritten


def _flattener(editor: Editor, conv: NodeProto) -> NodeProto | None:
    reader = editor.sole_reader(conv.output[0])
    return reader if reader is not None and reader.op_type in ("Flatten", "Reshape", "Squeeze") else None


def _ends(editor: Editor, conv: NodeProto) -> bool:
    return conv.output[0] in editor.outputs and not editor.readers(conv.output[0])


def _rewrite(editor: Editor, conv: NodeProto, shapes: dict[str, tuple[Dimension, ...]]) -> bool:
    flatten = _flattener(editor, conv)
    weight = editor.constants.get(conv.input[1])
    if weight is None or attribute(conv, "group", 1) != 1:
        return False
    outputs, inputs, *kernel = weight.dims
    source = shapes.get(conv.input[0], ())
    if (
        math.prod(kernel) != 1
        or any(attribute(conv, "pads", []))
        or any(s != 1 for s in attribute(conv, "strides", []))
    ):
        return False
    if len(source) != len(kernel) + 2 or any(size != 1 for size in source[2:]):
        return False
    if flatten is not None and (len(target := shapes.get(flatten.output[0], ())) != 2 or target[1] != outputs):
        return False

    rows = to_array(weight).reshape(outputs, inputs)
    flat = editor.fresh_name(f"{conv.input[0]}_flat")
    editor.set_constant(conv, 1, rows)
    result = conv.output[0] if flatten is None else flatten.output[0]
    product = editor.fresh_name(f"{result}_flat") if flatten is None else result
    nodes = [
        helper.make_node("Flatten", [conv.input[0]], [flat], name=f"{flat}_Flatten", axis=1),
        helper.make_node(
            "Gemm", [flat, *conv.input[1:]], [product], name=conv.name, alpha=1.0, beta=1.0, transA=0, transB=1
        ),
    ]
    if flatten is None:
        shape = editor.add_constant(f"{result}_shape", np.array([0, outputs, *kernel]))
        nodes.append(helper.make_node("Reshape", [product, shape], [result], name=f"{product}_Reshape"))
    editor.replace(conv, [conv, *([flatten] if flatten is not None else [])], nodes)
    return True
