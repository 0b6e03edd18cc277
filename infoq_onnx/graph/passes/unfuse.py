"""Operators that fuse several are taken apart again: attention, and what onnxruntime's optimisers leave in a file.

- Attention of ONNX is replaced by the function that defines it.
- Of com.microsoft: Attention and MultiHeadAttention without masks and caches, SkipLayerNormalization, BiasGelu,
  FusedMatMul, FusedGemm, and FusedConv.

What is left after that is made of operators that can be quantized. A node with an input or attribute that is not
mentioned here stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import NodeProto, helper

from infoq_onnx.graph.editing import attribute, infer, input_at, is_standard, opset_of
from infoq_onnx.graph.editor import Editor

_DOMAIN = "com.microsoft"
_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Tanh"})
Parts = list[NodeProto]


def unfuse(model: onnx.ModelProto) -> int:
    """Take fused operators apart.

    Returns
    -------
    int
        Number of nodes replaced.
    """
    return _inline_attention(model) + _unfuse(model)


def _inline_attention(model: onnx.ModelProto) -> int:
    found = [node for node in model.graph.node if node.op_type == "Attention" and is_standard(node.domain)]
    if not found:
        return 0
    # the function depends on the types and ranks of its inputs
    typed = onnx.shape_inference.infer_shapes(model)
    inlined = onnx.inliner.inline_selected_functions(typed, [("", "Attention")], inline_schema_functions=True)
    left = sum(node.op_type == "Attention" and is_standard(node.domain) for node in inlined.graph.node)
    if left < len(found):
        del inlined.graph.value_info[:]
        model.CopyFrom(inlined)
    return len(found) - int(left)


def _unfuse(model: onnx.ModelProto) -> int:
    editor = Editor(model.graph)
    fused = [node for node in editor.nodes if node.domain == _DOMAIN and node.op_type in _RULES]
    if not fused:
        return 0
    shapes, opset, count = infer(model).shapes, opset_of(model), 0
    for node in fused:
        parts = _RULES[node.op_type](_Maker(editor, node, shapes, opset))
        if parts:
            editor.replace(node, [node], parts)
            count += 1
    editor.apply()
    return count


class _Maker:
    """Makes the nodes that stand for one fused node, the first of which has its name."""

    def __init__(self, editor: Editor, node: NodeProto, shapes: dict[str, Any], opset: int) -> None:
        self.editor, self.node, self.shapes, self.opset = editor, node, shapes, opset
        self.parts: Parts = []

    def only(self, inputs: int, *attributes: str) -> bool:
        """Whether the node has no further inputs, attributes or outputs than these."""
        known = {entry.name for entry in self.node.attribute} <= set(attributes)
        return known and not any(self.node.input[inputs:]) and not any(self.node.output[1:])

    def add(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        """Append a node and return its output."""
        output = self.editor.fresh_name(f"{self.node.output[0]}_{op_type}")
        name = self.node.name if not self.parts else ""
        self.parts.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def constant(self, part: str, values: Any) -> str:
        return self.editor.add_constant(f"{self.node.output[0]}_{part}", np.asarray(values))

    def done(self) -> Parts:
        """Let the last node write the fused node's output."""
        self.parts[-1].output[0] = self.node.output[0]
        return self.parts

    def heads(self, tensor: str, count: int, size: int, perm: list[int]) -> str:
        """[N, S, count · size] to [N, count, S, size], or another order of these."""
        shape = self.constant("heads", [0, -1, count, size])
        return self.add("Transpose", [self.add("Reshape", [tensor, shape])], perm=perm)

    def attend(self, query: str, key: str, value: str, count: int, size: int, depth: int) -> Parts:
        """softmax(q · kᵀ / √size) · v, of [N, S, count · size] each; `depth` is the size of a value's head."""
        scale = attribute(self.node, "scale", 0.0) or size**-0.5
        scaled = self.add("Mul", [query, self.constant("scale", np.float32(scale))])
        scores = self.add(
            "MatMul", [self.heads(scaled, count, size, [0, 2, 1, 3]), self.heads(key, count, size, [0, 2, 3, 1])]
        )
        weights = self.add("Softmax", [scores], axis=-1)
        mixed = self.add("MatMul", [weights, self.heads(value, count, depth, [0, 2, 1, 3])])
        joined = self.add("Transpose", [mixed], perm=[0, 2, 1, 3])
        self.add("Reshape", [joined, self.constant("joined", [0, -1, count * depth])])
        return self.done()


def _attention(make: _Maker) -> Parts:
    """One product for queries, keys and values: input [N, S, C], weights [C, 3E], bias [3E]."""
    node = make.node
    count = attribute(node, "num_heads", 0)
    weights = make.editor.constants.get(input_at(node, 1))
    if not make.only(3, "num_heads", "scale", "unidirectional") or attribute(node, "unidirectional", 0):
        return []
    if weights is None or not count or weights.dims[1] % (3 * count):
        return []
    width = weights.dims[1] // 3
    product = make.add("MatMul", [node.input[0], node.input[1]])
    if bias := input_at(node, 2):
        product = make.add("Add", [product, bias])
    parts = [make.editor.fresh_name(f"{node.output[0]}_{part}") for part in ("query", "key", "value")]
    make.parts.append(helper.make_node("Split", [product, make.constant("split", [width] * 3)], parts, axis=-1))
    query, key, value = parts
    return make.attend(query, key, value, count, width // count, width // count)


def _multi_head_attention(make: _Maker) -> Parts:
    """Queries, keys and values that are made already, [N, S, E] each, perhaps with a bias of all three, [3E]."""
    node = make.node
    count = attribute(node, "num_heads", 0)
    ends = [(make.shapes.get(name) or (None,))[-1] for name in node.input[:3]]
    ranks = {len(make.shapes.get(name) or ()) for name in node.input[:3]}
    if not make.only(3, "num_heads", "scale") or len(ends) != 3 or not count or ranks != {3}:
        return []
    width, _, depth = ends
    if not isinstance(width, int) or not isinstance(depth, int):
        return []
    return make.attend(node.input[0], node.input[1], node.input[2], count, width // count, depth // count)


def _skip_layer_normalization(make: _Maker) -> Parts:
    """LayerNormalization(x + skip + bias); the sum may be an output as well, the fourth."""
    node = make.node
    if make.opset < 17 or not {entry.name for entry in node.attribute} <= {"epsilon"} or any(node.output[1:3]):
        return []
    total = make.add("Add", [node.input[0], node.input[1]])
    if bias := input_at(node, 4):
        total = make.add("Add", [total, bias])
    if summed := (node.output[3] if len(node.output) > 3 else ""):
        make.parts[-1].output[0] = total = summed
    inputs = [total, *filter(None, node.input[2:4])]
    make.add("LayerNormalization", inputs, axis=-1, epsilon=attribute(node, "epsilon", 1e-12))
    return make.done()


def _bias_gelu(make: _Maker) -> Parts:
    """x/2 · (1 + erf(x/√2)) of x + bias."""
    if not make.only(2):
        return []
    total = make.add("Add", list(make.node.input))
    root = make.add("Erf", [make.add("Div", [total, make.constant("root", np.float32(2**0.5))])])
    upper = make.add("Add", [root, make.constant("one", np.float32(1))])
    make.add("Mul", [make.add("Mul", [total, upper]), make.constant("half", np.float32(0.5))])
    return make.done()


def _matmul(make: _Maker) -> Parts:
    """Alpha · A · B, of which B may be a matrix to be transposed, or both of rank 3 and more."""
    node = make.node
    if not make.only(2, "alpha", "transA", "transB") or attribute(node, "transA", 0):
        return []
    right = node.input[1]
    if attribute(node, "transB", 0):
        rank = len(make.shapes.get(right) or ())
        if rank < 2:
            return []
        right = make.add("Transpose", [right], perm=[*range(rank - 2), rank - 1, rank - 2])
    product = make.add("MatMul", [node.input[0], right])
    if (alpha := attribute(node, "alpha", 1.0)) != 1.0:
        make.add("Mul", [product, make.constant("alpha", np.float32(alpha))])
    return make.done()


def _with_activation(op_type: str) -> Callable[[_Maker], Parts]:
    def rule(make: _Maker) -> Parts:
        node = make.node
        activation = attribute(node, "activation", b"").decode()
        kept = {
            entry.name: helper.get_attribute_value(entry)
            for entry in node.attribute
            if not entry.name.startswith("activation")
        }
        if activation not in _ACTIVATIONS or any(node.input[3:]):
            return []
        make.add(activation, [make.add(op_type, list(node.input[:3]), **kept)])
        return make.done()

    return rule


_RULES: dict[str, Callable[[_Maker], Parts]] = {
    "Attention": _attention,
    "BiasGelu": _bias_gelu,
    "FusedConv": _with_activation("Conv"),
    "FusedGemm": _with_activation("Gemm"),
    "FusedMatMul": _matmul,
    "MultiHeadAttention": _multi_head_attention,
    "SkipLayerNormalization": _skip_layer_normalization,
}
