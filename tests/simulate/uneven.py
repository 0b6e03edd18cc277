"""Networks with a depthwise convolution behind another one, whose channels differ in size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from tests.networks import Builder

Between = Callable[[Builder, str], str]
"""Adds nodes behind a tensor, and returns what they write."""


# ---------------------------------------------------------------------------------------- what commutes with a factor


def nothing(b: Builder, y: str) -> str:  # noqa: ARG001
    return y


def relu(b: Builder, y: str) -> str:
    return b.relu(y, "relu")


def relu6(b: Builder, y: str) -> str:
    return b.relu6(y, "relu6")


def half_open(b: Builder, y: str) -> str:
    """Clip(0, ∞)."""
    return b.op("Clip", [y, b.constant("floor", 0.0)], "clip")


def pad(b: Builder, y: str, value: float = 0.0, **attributes: str) -> str:
    pads = b.constant("pads", [0, 0, 1, 0, 0, 0, 0, 2], np.int64)
    return b.op("Pad", [y, pads, b.constant("filled", value)], "pad", **attributes)


def padded(b: Builder, y: str) -> str:
    return pad(b, relu(b, y))


def clipped_and_padded(b: Builder, y: str) -> str:
    """The padding of TensorFlow's strided convolutions, as a node of its own."""
    return pad(b, relu6(b, y))


def clipped_twice(b: Builder, y: str) -> str:
    y = relu6(b, y)
    return b.op("Clip", [y, b.constant("nil", 0.0), b.constant("two", 2.0)], "again")


def clipped_wider_again(b: Builder, y: str) -> str:
    y = b.op("Clip", [y, b.constant("nil", 0.0), b.constant("two", 2.0)], "before")
    return relu6(b, y)


COMMUTING = (nothing, relu, relu6, half_open, padded, clipped_and_padded, clipped_twice, clipped_wider_again)


# ------------------------------------------------------------------------------------------------- and what does not


def tanh(b: Builder, y: str) -> str:
    return b.op("Tanh", [y], "tanh")


def shifted(b: Builder, y: str) -> str:
    return b.op("Add", [y, b.constant("shift", 1.0)], "add")


def clipped_below(b: Builder, y: str) -> str:
    return b.op("Clip", [y, b.constant("low", -1.0), b.constant("high", 6.0)], "clip")


def clipped_by_what_is_computed(b: Builder, y: str) -> str:
    high = b.op("ReduceMax", ["x"], "high", keepdims=0)
    return b.op("Clip", [y, b.constant("nil", 0.0), high], "clip")


def padded_with_ones(b: Builder, y: str) -> str:
    return pad(b, y, 1.0)


def padded_with_edges(b: Builder, y: str) -> str:
    return pad(b, y, mode="edge")


def pooled(b: Builder, y: str) -> str:
    return b.op("MaxPool", [y], "pool", kernel_shape=[2, 2])


OTHERS = (tanh, shifted, clipped_below, clipped_by_what_is_computed, padded_with_ones, padded_with_edges, pooled)


# ------------------------------------------------------------------------------------------------------------- networks


def uneven_conv(b: Builder, x: str, name: str, cin: int, cout: int, group: int = 1) -> str:
    """A convolution whose output channels differ by up to 2^7 in size, the first being the largest."""
    y = b.conv(x, name, cin, cout, group=group)
    sizes = 2.0 ** -b.random.uniform(0, 7, cout)
    sizes[0] = 2.0
    b.weights[f"{name}_w"] = (b.weights[f"{name}_w"] * sizes[:, None, None, None]).astype(np.float32)
    b.weights[f"{name}_b"] = (b.weights[f"{name}_b"] * sizes).astype(np.float32)
    return y


def even_depthwise(b: Builder, x: str, name: str, channels: int) -> str:
    """A depthwise convolution that brings channels of any size to one size."""
    y = b.conv(x, name, channels, channels, group=channels)
    first = b.weights["first_w"]
    sizes = np.abs(first).max(axis=(1, 2, 3)) / np.abs(first).max()
    b.weights[f"{name}_w"] = (b.weights[f"{name}_w"] / sizes[:, None, None, None] / 4).astype(np.float32)
    return y


def network(between: Between, size: int = 10) -> onnx.ModelProto:
    """Uneven channels, whatever lies between, a depthwise convolution that evens them out, and a classifier."""
    b = Builder()
    y = even_depthwise(b, between(b, uneven_conv(b, "x", "first", 3, 16)), "second", 16)
    return b.model(b.classifier(b.op("Relu", [y], "last"), 16, 10), (3, size, size), (10,))


def chain() -> onnx.ModelProto:
    """Two depthwise convolutions one behind the other: the first of them is multiplied and divided."""
    b = Builder()
    y = relu6(b, uneven_conv(b, "x", "first", 3, 16))
    y = b.relu(uneven_conv(b, y, "second", 16, 16, group=16), "relu2")
    y = b.relu(b.conv(y, "third", 16, 16, group=16, bias=False), "relu3")
    return b.model(b.classifier(y, 16, 10), (3, 10, 10), (10,))


def one_dimensional() -> onnx.ModelProto:
    b = Builder()
    y = b.op("Conv", ["x", b.normal("first_w", 6, 3, 5, fan_in=15)], "first", pads=[2, 2])
    y = b.op("Conv", [b.relu(y, "relu"), b.normal("second_w", 6, 1, 3, fan_in=3)], "second", group=6)
    return b.model(b.classifier(y, 6, 4), (3, 12), (4,))


def second_of_kind(group: int, cout: int = 8) -> onnx.ModelProto:
    b = Builder()
    y = b.conv(b.relu(b.conv("x", "first", 3, 8), "relu"), "second", 8, cout, group=group)
    return b.model(b.classifier(y, cout, 5), (3, 6, 6), (5,))


def shared_reader(behind: str) -> onnx.ModelProto:
    """Something else reads what the first convolution writes, or what the depthwise one reads."""
    b = Builder()
    y = b.relu(b.conv("x", "first", 3, 8), "relu")
    second = b.conv(y, "second", 8, 8, group=8)
    return b.model(b.classifier(b.op("Add", [second, behind], "sum"), 8, 5), (3, 6, 6), (5,))


def computed_bias() -> onnx.ModelProto:
    """The first convolution adds what is computed from the image: no factor can be built into that."""
    b = Builder()
    sizes = np.array([1, 0.1, 0.01], np.float32)
    shift = b.op("ReduceMax", ["x"], "shift", axes=[0, 2, 3], keepdims=0)
    shift = b.op("Mul", [shift, b.constant("sizes", sizes)], "scaled")
    weight = b.constant("first_w", b.random.standard_normal((3, 3, 3, 3)) * sizes[:, None, None, None])
    y = b.relu(b.op("Conv", ["x", weight, shift], "first"), "relu")
    return b.model(b.classifier(b.conv(y, "second", 3, 3, group=3), 3, 4), (3, 6, 6), (4,), batch=1)


def padded_channels() -> onnx.ModelProto:
    """Padding adds channels, as in the shortcuts of the first residual networks."""
    b = Builder()
    more = b.constant("pads", [0, 2, 0, 0, 0, 6, 0, 0], np.int64)
    y = b.op("Pad", [b.relu(uneven_conv(b, "x", "first", 3, 8), "relu"), more], "pad")
    return b.model(b.classifier(b.conv(y, "second", 16, 16, group=16), 16, 5), (3, 6, 6), (5,))
