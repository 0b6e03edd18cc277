"""Which operators hold weights, or multiply, and are not quantized: each with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnx import NodeProto, TensorProto, helper

from infoq_onnx.graph.editing import QUANTIZABLE, is_standard, subgraphs, walk

_FUSED = "fused operators are kept in float; export the model without onnxruntime's optimisations"
_RECURRENT = "recurrent operators are kept in float"
_ATTENTION = "attention in one operator is kept in float"
_REASONS = {
    "Attention": _ATTENTION,
    "BiasGelu": "fused operators are kept in float",
    "DeformConv": "deformable convolution is kept in float",
    "Einsum": "Einsum is kept in float; export it as MatMul to quantize it",
    "EmbedLayerNormalization": "embeddings are kept in float",
    "FusedConv": _FUSED,
    "FusedGemm": _FUSED,
    "FusedMatMul": _FUSED,
    "GRU": _RECURRENT,
    "GroupQueryAttention": _ATTENTION,
    "LSTM": _RECURRENT,
    "MultiHeadAttention": _ATTENTION,
    "NhwcConv": _FUSED,
    "RNN": _RECURRENT,
}
_LAYOUT_DOMAIN = "com.microsoft.nchwc"
"""Of the operators that onnxruntime lays out for one processor when it saves an optimised model."""

_ELEMENTWISE = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Sum", "Mean", "PRelu", "Clip", "Cast", "CastLike"),
        *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Where", "Identity", "Dropout"),
    }
)
"""Their constants act on values one by one: no more than one multiplication for each."""
_MOVES = frozenset(
    {
        *("Concat", "Expand", "Flatten", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "Transpose"),
        *("Unsqueeze", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "GridSample", "Shape", "Size"),
        # of the codes that a quantized model holds
        *("QuantizeLinear", "DequantizeLinear", "BitShift"),
    }
)
_NORMALIZES = frozenset(
    {
        *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LRN"),
        *("RMSNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "RotaryEmbedding"),
        *("SkipSimplifiedLayerNormalization", "MeanVarianceNormalization", "LpNormalization"),
    }
)
_HARMLESS = _ELEMENTWISE | _MOVES | _NORMALIZES
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def float_reason(node: NodeProto, constants: Mapping[str, TensorProto]) -> str | None:
    """Return why a node that holds weights or multiplies cannot be a layer, whatever its domain.

    Parameters
    ----------
    node : a node
    constants : the initializers of its graph

    Returns
    -------
    str or None
        None for the operators of layers (`QUANTIZABLE`), and for nodes that neither hold weights nor multiply.
    """
    standard = is_standard(node.domain)
    if standard and node.op_type in QUANTIZABLE:
        return None
    if node.op_type in _REASONS:
        return _REASONS[node.op_type]
    if node.domain == _LAYOUT_DOMAIN and node.op_type == "Conv":
        return _FUSED
    if any(inner.op_type in QUANTIZABLE for subgraph in subgraphs(node) for inner in walk(subgraph.node)):
        return f"its layers are inside the subgraph of {node.op_type}"
    if node.op_type == "Gather" and standard:
        return "embedding tables are kept in float" if _is_matrix(constants.get(node.input[0])) else None
    if node.op_type in _HARMLESS:
        return None
    if any(_is_matrix(constants.get(name)) for name in node.input) or (not standard and _has_coefficients(node)):
        where = "" if standard else f" of {node.domain}"
        return f"the operator {node.op_type}{where} is kept in float"
    return None


def _is_matrix(tensor: TensorProto | None) -> bool:
    """Whether a constant is float and has two axes or more, which a vector with axes of one element has not."""
    if tensor is None or tensor.data_type not in _FLOATS:
        return False
    return len(tensor.dims) > 1 and sum(size != 1 for size in tensor.dims) > 1


def _has_coefficients(node: NodeProto) -> bool:
    """Whether weights are attributes, as classical models of ai.onnx.ml have them."""
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if len(attribute.floats) > 1 or (isinstance(value, TensorProto) and math.prod(value.dims) > 1):
            return True
    return False
