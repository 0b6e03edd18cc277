"""Layers as plain matrix products: which layers qualify, and the conversion of their weights, inputs and outputs."""

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
    """A layer as a matrix product. G, p, d and R are defined in `quantize.im2col`."""

    weight: Float32
    channel_axis: int
    groups: int
    windows: Windows | None
    """Geometry of a convolution; None for a matrix product."""

    def rows(self) -> Float32:
        """Return the weights as rows [G, R, d]; a view where possible."""
        return to_rows(self.weight, self.channel_axis, self.groups)

    @property
    def shape(self) -> tuple[int, int, int]:
        """G, R and d."""
        outputs = self.weight.shape[self.channel_axis]
        return self.groups, outputs // self.groups, self.weight.size // outputs

    def rounded(self, rows: Rounded) -> RoundedWeight:
        """Convert rounded rows to a rounded weight in the layer's shape."""
        codes = from_rows(rows.codes, self.weight.shape, self.channel_axis).astype(np.int8)
        origins = None if rows.origins is None else rows.origins.reshape(-1)
        bias = None if rows.bias is None else rows.bias.reshape(-1)
        return RoundedWeight(codes, rows.scales.reshape(-1), rows.bits, origins, bias)

    def columns(self, values: Float32, positions: Positions = None) -> Float32:
        """Return the columns of the layer's input.

        Parameters
        ----------
        values : input of the layer, with its batch axis
        positions : output positions to take from every image, as row-major indices; None takes all

        Returns
        -------
        float32 array [G, p, d]
        """
        if self.windows is None:
            return matrix_columns(values, positions)
        return conv_columns(values, self.windows, positions)

    def outputs(self, values: Float32, positions: Positions = None) -> Float32:
        """Return the layer's outputs in the order of the columns.

        Parameters
        ----------
        values : output of the layer, with its batch axis
        positions : output positions to take from every image, as row-major indices; None takes all

        Returns
        -------
        float32 array [G, p, R]
        """
        return (
            matrix_columns(values, positions) if self.windows is None else conv_outputs(values, self.groups, positions)
        )


def target_of(graph: Graph, layer: Layer) -> str:
    """Return the tensor with a layer's result, including its bias."""
    if layer.op_type == "MatMul" and layer.bias is not None:
        return str(graph.consumers[layer.output][0].output[0])
    return layer.output


def form_of(graph: Graph, layer: Layer) -> Form | None:
    """Convert a layer to a matrix product; return None where that is not possible."""
    if layer.weight is None or layer.channel_axis is None:
        return None
    weight, axis = graph.constant(layer.weight), layer.channel_axis
    if layer.bias is None and input_at(graph.producer[layer.output], 2):
        # the bias is computed at run time: it is part of the target, but the weights must not fit it
        return None
    # a MatMul with its constant on the left, or with a stack of constants, would need a different kind of columns
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
    """Return a convolution's padding before and after each spatial axis, with `auto_pad` resolved."""
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
