"""Rewrite a patch embedding (a convolution that splits an image into tokens) as a matrix product.

If the windows do not overlap, Conv(x; W, b) followed by moving the channels to the last axis is a matrix product: each
window of x, flattened to a row, times W reshaped to [Cin·kh·kw, Cout], plus b. The integer kernel of a matrix product
can return float tokens; that of a convolution cannot. Vision transformers need float tokens here, because the embedding
is the first term of the residual sum in every layer.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, helper

from infoq_onnx.graph.editing import Dimension, attribute, infer, input_at, to_array
from infoq_onnx.graph.editor import Editor

Shapes = dict[str, tuple[Dimension, ...]]


def patches_to_matmul(model: onnx.ModelProto) -> int:
    """Rewrite 2-D Conv with kernel = stride and no padding, if its only consumers move the channels to the last axis.

    The consumers are a Transpose to [N, H, W, Cout], or a Reshape or Flatten to [N, Cout, H·W] followed by a Transpose
    to [N, H·W, Cout]. The MatMul keeps the name of the Conv, and the last new node keeps the name of the transposed
    tensor.

    Returns
    -------
    int
        Number of convolutions rewritten.
    """
    editor = Editor(model.graph)
    candidates = [node for node in editor.nodes if node.op_type == "Conv" and not node.domain and _tiles(editor, node)]
    if not candidates:
        return 0
    shapes = infer(model).shapes
    rewritten = sum(_rewrite(editor, node, shapes) for node in candidates)
    editor.apply()
    return rewritten


def _tiles(editor: Editor, conv: NodeProto) -> bool:
    weight = editor.constants.get(conv.input[1])
    if weight is None or len(weight.dims) != 4 or attribute(conv, "group", 1) != 1:
        return False
    kernel = list(weight.dims[2:])
    return (
        attribute(conv, "strides", [1, 1]) == kernel
        and not any(attribute(conv, "pads", []))
        and attribute(conv, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        and all(step == 1 for step in attribute(conv, "dilations", []))
    )


def _movers(editor: Editor, conv: NodeProto, shapes: Shapes) -> list[NodeProto]:
    """Return the nodes between a convolution and its channels-last result; none where it has no such result."""
    movers: list[NodeProto] = []
    tensor = conv.output[0]
    while len(movers) < 2 and (node := editor.sole_reader(tensor)) is not None and node.input[0] == tensor:
        movers.append(node)
        tensor = node.output[0]
        if node.op_type == "Transpose":
            last = [0, 2, 3, 1] if len(movers) == 1 else [0, 2, 1]
            return movers if attribute(node, "perm", []) == last else []
        _, channels, *map_ = shapes.get(conv.output[0], (None, None))
        flat = shapes.get(tensor, ())
        if node.op_type not in ("Reshape", "Flatten") or len(flat) != 3 or flat[1] != channels:
            return []
        if not all(isinstance(size, int) for size in map_) or flat[2] != np.prod([int(size or 0) for size in map_]):
            return []
    return []


def _rewrite(editor: Editor, conv: NodeProto, shapes: Shapes) -> bool:
    movers = _movers(editor, conv, shapes)
    weight = to_array(editor.constants[conv.input[1]])
    outputs, channels, *kernel = weight.shape
    source = shapes.get(conv.input[0], ())
    # a margin that no window covers would have to be cropped first
    sizes = [(size, extent) for size, extent in zip(source[2:], kernel, strict=False) if isinstance(size, int)]
    if not movers or len(sizes) != 2 or any(size % extent for size, extent in sizes):
        return False
    (rows, height), (columns, width) = ((size // extent, extent) for size, extent in sizes)
    positions = [rows, columns] if len(movers) == 1 else [rows * columns]

    result = movers[-1].output[0]
    windows, tiles, tokens, product = (
        editor.fresh_name(f"{conv.name}_{part}") for part in ("windows", "tiles", "tokens", "product")
    )
    cut_to = editor.add_constant(f"{windows}_shape", np.array([0, channels, rows, height, columns, width]))
    joined_to = editor.add_constant(f"{tokens}_shape", np.array([0, *positions, channels * height * width]))
    editor.set_constant(conv, 1, weight.reshape(outputs, -1).T)
    bias = input_at(conv, 2)
    nodes = [
        helper.make_node("Reshape", [conv.input[0], cut_to], [windows], name=windows),
        helper.make_node("Transpose", [windows], [tiles], name=tiles, perm=[0, 2, 4, 1, 3, 5]),
        helper.make_node("Reshape", [tiles, joined_to], [tokens], name=tokens),
        helper.make_node("MatMul", [tokens, conv.input[1]], [product if bias else result], name=conv.name),
    ]
    if bias:
        nodes.append(helper.make_node("Add", [product, bias], [result], name=f"{product}_bias"))
    editor.replace(conv, [conv, *movers], nodes)
    return True
