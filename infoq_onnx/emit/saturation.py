"""Detection of integer kernels that saturate on x86 processors without VNNI, and emulation of exact kernels there.

Only products of unsigned 8-bit activations and signed 8-bit weights are added in 16 bits (`quantize.saturation`).
onnxruntime adds products of all other types, and products in depthwise convolutions, in 32 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from infoq_onnx.graph.editing import (
    attribute,
    initializers_of,
    input_at,
    producers_of,
    to_array,
)
from infoq_onnx.graph.editor import Editor
from infoq_onnx.graph.operators import CONVOLUTIONS
from infoq_onnx.quantize.saturation import any_saturated, kernel_rows


@dataclass(frozen=True)
class _Inputs:
    """Indices of the inputs that an operator multiplies."""

    activation: int
    weight: int
    zero_point: int | None
    """Zero point of the activation; None if the operator quantizes the activation itself, to uint8."""


# ConvInteger is not included: it multiplies signed weights by unsigned activations in this order, which is exact
_MULTIPLIES: Mapping[str, _Inputs] = {
    "DynamicQuantizeMatMul": _Inputs(0, 1, None),
    "MatMulInteger": _Inputs(0, 1, 2),
    "MatMulIntegerToFloat": _Inputs(0, 1, 4),
    "QGemm": _Inputs(0, 3, 2),
    "QLinearConv": _Inputs(0, 3, 2),
    "QLinearMatMul": _Inputs(0, 3, 2),
}
_MOVES = frozenset({"Flatten", "MaxPool", "NhwcMaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that do not increase the largest code of their input."""


class SaturationView:
    """A graph optimised by onnxruntime, searched for integer kernels that may saturate without VNNI."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._producer = producers_of(graph)
        self._initializers = initializers_of(graph)

    def saturates(self, node: NodeProto) -> bool:
        """Return whether any activations can make the node's sums exceed 16 bits; False if it is no integer kernel."""
        places = _MULTIPLIES.get(node.op_type)
        if places is None:
            return False
        weight = self._initializers.get(input_at(node, places.weight))
        if weight is None or weight.data_type != TensorProto.INT8 or not self._is_unsigned(node, places):
            return False
        codes = to_array(weight)
        convolution = node.op_type == "QLinearConv"
        if convolution:
            groups = int(attribute(node, "group", 1))
            if codes.shape[1] == 1 and codes.shape[0] == groups:
                # depthwise
                return False
        axis = 0 if convolution or attribute(node, "transB", 0) else codes.ndim - 1
        largest = 255 if places.zero_point is None else self._largest(input_at(node, places.activation))
        return any_saturated(kernel_rows(codes, axis, convolution=convolution), largest)

    def _is_unsigned(self, node: NodeProto, places: _Inputs) -> bool:
        zero_point = "" if places.zero_point is None else input_at(node, places.zero_point)
        known = self._initializers.get(zero_point)
        # missing, or computed when the model runs: DynamicQuantizeLinear gives uint8
        return known is None or known.data_type == TensorProto.UINT8

    def _largest(self, tensor: str) -> int:
        """Return the largest code that a tensor can have."""
        while (node := self._producer.get(tensor)) is not None:
            if node.op_type == "Clip":
                top = self._initializers.get(input_at(node, 2))
                return 255 if top is None else int(to_array(top).item())
            if node.op_type not in _MOVES:
                break
            tensor = node.input[0]
        return 255


def with_unsigned_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store 8-bit weights as unsigned codes, with 128 added and a zero point of 128. Their values stay the same.

    onnxruntime's kernels for unsigned weights add in 32 bits on every processor. A processor without VNNI therefore
    computes with the changed model what a processor with VNNI computes with the original model.

    Parameters
    ----------
    model : a Q/DQ model; it is not modified

    Returns
    -------
    onnx.ModelProto
        The changed copy.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    initializers = initializers_of(graph)
    weights = {
        name for node in graph.node if node.op_type in (*CONVOLUTIONS, "Gemm", "MatMul") for name in node.input[1:2]
    }
    editor = Editor(graph)
    for node in editor.nodes:
        codes = initializers.get(input_at(node, 0))
        if (
            node.op_type == "DequantizeLinear"
            and node.output[0] in weights
            and codes is not None
            and codes.data_type == TensorProto.INT8
        ):
            moved = (to_array(codes).astype(np.int16) + 128).astype(np.uint8)
            codes.CopyFrom(numpy_helper.from_array(moved, codes.name))
            scales = to_array(initializers[node.input[1]])
            del node.input[2:]
            editor.set_constant(node, 2, np.full(scales.shape, 128, dtype=np.uint8), f"{node.output[0]}/zeros")
    return changed
