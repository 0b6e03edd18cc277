"""Which layers are a plain matrix product, and how to bring their weights, inputs and outputs into that form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from infoq_onnx.graph.editing import attribute, input_at
from infoq_onnx.graph.graph import Graph
from infoq_onnx.quantize.codes import RoundedWeight
from infoq_onnx.quantize.im2col import (
    Positions,
    Windows,
    conv_columns,
    conv_outputs,
    from_rows,
    matrix_columns,
    to_rows,
)
from infoq_onnx.quantize.rounding import Rounded
from infoq_onnx.schema import Layer

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Form:
    """A layer as a matrix product. G, p, d and R are those of `quantize.im2col`."""

    weight: Float32
    channel_axis: int
    groups: int
    windows: Windows | None
    """None for a matrix product."""

    def rows(self) -> Float32:
        """Weights [G, R, d]; a view where possible."""
        return to_rows(self.weight, self.channel_axis, self.groups)

    @property
    def shape(self) -> tuple[int, int, int]:
        """G, R and d."""
        outputs = self.weight.shape[self.channel_axis]
        return self.groups, outputs // self.groups, self.weight.size // outputs

    def rounded(self, rows: Rounded) -> RoundedWeight:
        """Rounded rows in the shape of the layer's weight."""
        codes = from_rows(rows.codes, self.weight.shape, self.channel_axis).astype(np.int8)
        origins = None if rows.origins is None else rows.origins.reshape(-1)
        bias = None if rows.bias is None else rows.bias.reshape(-1)
        return RoundedWeight(codes, rows.scales.reshape(-1), rows.bits, origins, bias)

    def columns(self, values: Float32, positions: Positions = None) -> Float32:
        """Columns [G, p, d] of the layer's input, at some output positions of every image or at all."""
        if self.windows is None:
            return matrix_columns(values, positions)
        return conv_columns(values, self.windows, positions)

    def outputs(self, values: Float32, positions: Positions = None) -> Float32:
        """Outputs [G, p, R] in the order of the columns."""
        return (
            matrix_columns(values, positions) if self.windows is None else conv_outputs(values, self.groups, positions)
        )


def target_of(graph: Graph, layer: Layer) -> str:
    """Return the tensor that holds a layer's result, its bias included."""
    if layer.op_type == "MatMul" and layer.bias is not None:
        return str(graph.consumers[layer.output][0].output[0])
    return layer.output


def form_of(graph: Graph, layer: Layer) -> Form | None:
    """Bring a layer into the form of a matrix product; None where that is not possible."""
    if layer.weight is None or layer.channel_axis is None:
        return None
    weight, axis = graph.constant(layer.weight), layer.channel_axis
    if layer.bias is None and input_at(graph.producer[layer.output], 2):
        # what is added varies, and is in the target, but is nothing that weights should make
        return None
    # the constant on the left of a MatMul, or a stack of constants, would need columns of another kind
    plain_matmul = layer.op_type == "MatMul" and len(layer.weight_shape) == 2 and layer.channel_axis == 1
    if layer.op_type == "Gemm" or plain_matmul:
        return Form(weight, axis, 1, None)
    if layer.op_type != "Conv":
        return None
    node = graph.producer[layer.output]
    rank = len(layer.weight_shape) - 2
    kernel = layer.weight_shape[2:]
    strides = tuple(attribute(node, "strides", [1] * rank))
    dilations = tuple(attribute(node, "dilations", [1] * rank))
    before, after = _pads(graph, node, kernel, strides, dilations)
    groups = int(attribute(node, "group", 1))
    return Form(weight, axis, groups, Windows(kernel, strides, dilations, before, after, groups))


def _pads(
    graph: Graph, node: onnx.NodeProto, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    mode = attribute(node, "auto_pad", b"NOTSET")
    rank = len(kernel)
    if mode in (b"SAME_UPPER", b"SAME_LOWER"):
        before, after = [], []
        for axis, size in enumerate(graph.shapes[node.input[0]][-rank:]):
            extent = dilations[axis] * (kernel[axis] - 1) + 1
            total = max(0, (-(-size // strides[axis]) - 1) * strides[axis] + extent - size)
            small, large = total // 2, total - total // 2
            before.append(small if mode == b"SAME_UPPER" else large)
            after.append(large if mode == b"SAME_UPPER" else small)
        return tuple(before), tuple(after)
    pads = [0] * (2 * rank) if mode == b"VALID" else attribute(node, "pads", [0] * (2 * rank))
    return tuple(pads[:rank]), tuple(pads[rank:])
