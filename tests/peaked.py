"""Networks in which one channel dwarfs all others of its tensor."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from tests.networks import Builder

HIDDEN, LARGE = 256, 77


def scaled(model: onnx.ModelProto, name: str, channels: dict[int, float], axis: int) -> onnx.ModelProto:
    """Make some channels of a weight larger."""
    for initializer in model.graph.initializer:
        if initializer.name == name:
            weight = np.moveaxis(numpy_helper.to_array(initializer).copy(), axis, 0)
            for channel, factor in channels.items():
                weight[channel] *= factor
            initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(np.moveaxis(weight, 0, axis)), name))
    return model


def vectors(large: dict[int, float] | None = None) -> onnx.ModelProto:
    """Gemm, Elu, Gemm, Elu, Gemm."""
    b = Builder()
    y = b.op("Elu", [b.gemm("x", "one", 12, HIDDEN)], "elu")
    y = b.op("Elu", [b.gemm(y, "two", HIDDEN, 16)], "behind")
    model = b.model(b.gemm(y, "three", 16, 5), (12,), (5,))
    return scaled(model, "one_w", {LARGE: 40.0} if large is None else large, 0)


def tokens() -> onnx.ModelProto:
    """Two MatMul read what an Elu makes of each token."""
    b = Builder()
    y = b.op("Elu", [b.linear("x", "one", 12, HIDDEN)], "elu")
    y = b.op("Mul", [b.linear(y, "left", HIDDEN, 16), b.linear(y, "right", HIDDEN, 16)], "product")
    y = b.op("ReduceMean", [y], "mean", axes=[1], keepdims=0)
    return scaled(b.model(b.gemm(y, "three", 16, 5), (7, 12), (5,)), "one_w", {LARGE: 40.0}, 1)
