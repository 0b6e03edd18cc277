"""Small valid classifiers over the supported operators, as a hypothesis strategy.

A classifier is an image network (blocks on [C, H, W], then a head) or a network on tokens ([T, D]) or features ([D]).
Blocks are drawn one after the other; each keeps track of the shape of what it gives. Weights are random, of a size that
keeps activations at about one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st

from tests.networks import Builder

Draw = Callable[[st.SearchStrategy[Any]], Any]


class Growing(Builder):
    """A network that grows block by block. `at` is the tensor at its end, and `shape` its shape without the batch."""

    def __init__(self, draw: Draw, shape: tuple[int, ...]) -> None:
        super().__init__(draw(st.integers(0, 999)))
        self.draw, self.at, self.input_shape, self.shape = draw, "x", shape, shape
        self.count = 0

    def name(self, what: str) -> str:
        self.count += 1
        return f"{what}{self.count}"

    def one_of(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def then(self, op_type: str, *others: str, shape: tuple[int, ...] | None = None, **attributes: Any) -> None:
        """Add a node on the tensor at the end."""
        self.at = self.op(op_type, [self.at, *others], self.name(op_type.lower()), **attributes)
        self.shape = self.shape if shape is None else shape

    def number(self, value: Any, dtype: Any = np.float32) -> str:
        return self.constant(self.name("c"), value, dtype)

    def scaled(self, *shape: int, fan_in: int) -> str:
        return self.normal(self.name("w"), *shape, fan_in=fan_in)


Block = Callable[[Growing], None]

# ----------------------------------------------------------------------------------------------------------- any shape


def activation(b: Growing) -> None:
    kind = b.one_of(
        *("Relu", "Relu6", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "Elu", "Selu", "Softplus", "HardSwish"),
        *("HardSigmoid", "Silu", "Gelu", "Abs", "Softsign"),
    )
    if kind == "Relu6":
        b.then("Clip", b.number(0.0), b.number(6.0))
    elif kind == "Clip":
        b.then("Clip", b.number(b.one_of(-1.0, -0.5, 0.0)), b.number(b.one_of(0.5, 1.0, 3.0)))
    elif kind == "PRelu":
        slopes = b.random.uniform(0, 0.5, (b.shape[0], 1, 1) if len(b.shape) == 3 else b.shape[-1:])
        b.then("PRelu", b.number(slopes))
    elif kind == "Silu":
        before = b.at
        b.then("Sigmoid")
        b.then("Mul", before)
    elif kind == "Gelu":
        before = b.at
        b.then("Div", b.number(math.sqrt(2)))
        b.then("Erf")
        b.then("Add", b.number(1.0))
        b.then("Mul", before)
        b.then("Mul", b.number(0.5))
    else:
        b.then(kind)


def arithmetic(b: Growing) -> None:
    value = b.random.uniform(0.5, 1.5, b.one_of((), (1,), b.shape[-1:]))
    b.then(b.one_of("Add", "Sub", "Mul", "Div"), b.number(value))


def identity(b: Growing) -> None:
    kind = b.one_of("Identity", "Dropout", "Cast", "Reshape", "Squeeze")
    if kind == "Cast":
        b.then("Cast", to=onnx.TensorProto.FLOAT)
    elif kind == "Reshape":
        b.then("Reshape", b.number([0, *b.shape], np.int64))
    elif kind == "Squeeze":
        axis = b.number([1], np.int64)
        b.then("Unsqueeze", axis)
        b.then("Squeeze", axis)
    else:
        b.then(kind)


def residual(b: Growing) -> None:
    """Two ways, joined again."""
    before, shape = b.at, b.shape
    block = convolution if len(shape) == 3 else dense
    block(b)
    if b.one_of(True, False):
        activation(b)
    if b.shape != shape:
        other = b.at
        b.at, b.shape, wanted = before, shape, b.shape
        if len(shape) == 3:
            stride = (math.ceil(shape[1] / wanted[1]), math.ceil(shape[2] / wanted[2]))
            if any((size - 1) // by + 1 != new for size, by, new in zip(shape[1:], stride, wanted[1:], strict=True)):
                # no convolution of 1×1 gives this size: one way only
                b.at, b.shape = other, wanted
                return
            b.then("Conv", b.scaled(wanted[0], shape[0], 1, 1, fan_in=shape[0]), shape=wanted, strides=list(stride))
        else:
            b.then("MatMul", b.scaled(shape[-1], wanted[-1], fan_in=2 * shape[-1]), shape=wanted)
        before = other
    b.then(b.one_of("Add", "Add", "Mul", "Sub", "Max"), before)


# -------------------------------------------------------------------------------------------------------------- images


def convolution(b: Growing) -> None:
    channels, height, width = b.shape
    kernel = b.one_of(1, 1, 3, 3, 2, 5)
    stride = b.one_of(1, 1, 2)
    dilation = b.one_of(1, 1, 1, 2)
    grouping = b.one_of("dense", "dense", "depthwise", "grouped")
    group = {"dense": 1, "depthwise": channels, "grouped": 2 if channels % 2 == 0 else 1}[grouping]
    outputs = channels * b.one_of(1, 2) if grouping != "dense" else b.one_of(4, 6, 8, 9)
    span = dilation * (kernel - 1) + 1
    before, after = (span - 1) // 2, span // 2
    if b.one_of(True, True, False) or height < span or width < span:
        pads = [before, before, after, after]
    else:
        pads = [0, 0, 0, 0]
    size = tuple((s + pads[0] + pads[2] - span) // stride + 1 for s in (height, width))
    inputs = [b.scaled(outputs, channels // group, kernel, kernel, fan_in=channels // group * kernel**2)]
    if b.one_of(True, False):
        inputs.append(b.number(b.random.standard_normal(outputs) * 0.1))
    attributes = {"strides": [stride, stride], "dilations": [dilation, dilation], "group": group}
    b.then("Conv", *inputs, shape=(outputs, *size), pads=pads, **attributes)
    if b.one_of(True, False):
        batchnorm(b)
    if b.one_of(True, True, False):
        activation(b)


def transposed(b: Growing) -> None:
    channels, height, width = b.shape
    if height * width > 64:
        return convolution(b)
    outputs = b.one_of(4, 6)
    weight = b.scaled(channels, outputs, 2, 2, fan_in=channels)
    return b.then("ConvTranspose", weight, shape=(outputs, 2 * height, 2 * width), strides=[2, 2])


def batchnorm(b: Growing) -> None:
    b.at = b.batchnorm(b.at, b.name("bn"), b.shape[0])


def pooling(b: Growing) -> None:
    channels, height, width = b.shape
    if min(height, width) < 4:
        return activation(b)
    kind = b.one_of("MaxPool", "AveragePool")
    return b.then(kind, shape=(channels, height // 2, width // 2), kernel_shape=[2, 2], strides=[2, 2])


def padded(b: Growing) -> None:
    channels, height, width = b.shape
    pads = b.number([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    mode = b.one_of("constant", "reflect", "edge") if min(height, width) > 1 else "constant"
    b.then("Pad", pads, shape=(channels, height + 2, width + 2), mode=mode)


def cropped(b: Growing) -> None:
    channels, height, width = b.shape
    if min(height, width) < 4:
        return arithmetic(b)
    starts, ends = b.number([1, 0], np.int64), b.number([height, width - 1], np.int64)
    return b.then("Slice", starts, ends, b.number([2, 3], np.int64), shape=(channels, height - 1, width - 1))


def shuffled(b: Growing) -> None:
    """Channels in another order, by Reshape and Transpose, or by Split and Concat."""
    channels, height, width = b.shape
    if channels % 2:
        return activation(b)
    if b.one_of(True, False):
        b.then("Reshape", b.number([0, 2, channels // 2, height, width], np.int64))
        b.then("Transpose", perm=[0, 2, 1, 3, 4])
        return b.then("Reshape", b.number([0, channels, height, width], np.int64))
    name = b.name("split")
    sizes = b.number([channels // 2] * 2, np.int64)
    halves = [f"{name}_first", f"{name}_second"]
    b.op("Split", [b.at, sizes], name, halves, axis=1)
    b.at, b.shape = halves[0], (channels // 2, height, width)
    activation(b)
    b.at = b.op("Concat", [halves[1], b.at], b.name("concat"), axis=1)
    b.shape = (channels, height, width)
    return None


def squeezed(b: Growing) -> None:
    """Squeeze and excite."""
    before, shape = b.at, b.shape
    b.then("GlobalAveragePool", shape=(shape[0], 1, 1))
    b.then("Conv", b.scaled(4, shape[0], 1, 1, fan_in=shape[0]), shape=(4, 1, 1))
    b.then("Relu")
    b.then("Conv", b.scaled(shape[0], 4, 1, 1, fan_in=4), shape=(shape[0], 1, 1))
    b.then(b.one_of("Sigmoid", "HardSigmoid"))
    b.then("Mul", before, shape=shape)


def joined(b: Growing) -> None:
    """Two convolutions beside each other, concatenated."""
    before, shape = b.at, b.shape
    parts = []
    for _ in range(2):
        b.at, b.shape = before, shape
        b.then("Conv", b.scaled(4, shape[0], 1, 1, fan_in=shape[0]), shape=(4, *shape[1:]))
        if b.one_of(True, False):
            activation(b)
        parts.append(b.at)
    b.at = b.op("Concat", parts, b.name("concat"), axis=1)
    b.shape = (8, *shape[1:])


def resized(b: Growing) -> None:
    channels, height, width = b.shape
    if height * width > 64:
        return pooling(b)
    scales = b.number([1, 1, 2, 2])
    return b.then("Resize", "", scales, shape=(channels, 2 * height, 2 * width), mode=b.one_of("nearest", "linear"))


IMAGE_BLOCKS: tuple[Block, ...] = (
    *(convolution, convolution, convolution, transposed, batchnorm, activation, arithmetic, identity, residual),
    *(residual, pooling, padded, cropped, shuffled, squeezed, joined, resized),
)

# ------------------------------------------------------------------------------------------------- tokens and features


def dense(b: Growing) -> None:
    size, outputs = b.shape[-1], b.one_of(4, 8, 12)
    if len(b.shape) == 1 and b.one_of(True, False):
        b.at = b.gemm(b.at, b.name("fc"), size, outputs)
    elif b.one_of(True, False):
        b.at = b.linear(b.at, b.name("fc"), size, outputs)
    else:
        b.then("MatMul", b.scaled(size, outputs, fan_in=2 * size))
    b.shape = (*b.shape[:-1], outputs)
    if b.one_of(True, False):
        activation(b)


def layernorm(b: Growing) -> None:
    size = b.shape[-1]
    gain, shift = b.number(b.random.uniform(0.5, 1.5, size)), b.number(b.random.standard_normal(size) * 0.1)
    b.then("LayerNormalization", gain, shift, axis=-1)


def attention(b: Growing) -> None:
    tokens, size = b.shape
    before = b.at
    parts = []
    for _ in range(3):
        b.at = before
        b.then("MatMul", b.scaled(size, 8, fan_in=2 * size))
        parts.append(b.at)
    query, key, value = parts
    turned = b.op("Transpose", [key], b.name("turn"), perm=[0, 2, 1])
    b.at = b.op("MatMul", [query, turned], b.name("scores"))
    b.then("Mul", b.number(8**-0.5))
    b.then("Softmax", axis=-1)
    b.then("MatMul", value, shape=(tokens, 8))


def expanded(b: Growing) -> None:
    """An Einsum or a product with a mean over tokens."""
    tokens, size = b.shape
    if b.one_of(True, False):
        outputs = b.one_of(4, 8)
        weight = b.scaled(size, outputs, fan_in=2 * size)
        return b.then("Einsum", weight, shape=(tokens, outputs), equation="btd,de->bte")
    mean = b.op("ReduceMean", [b.at], b.name("mean"), axes=[1], keepdims=1)
    # not their difference: its mean over tokens, where a head follows, would be zero for every image
    return b.then("Mul", mean)


TOKEN_BLOCKS: tuple[Block, ...] = (
    *(dense, dense, dense, layernorm, attention, attention, expanded, activation, arithmetic, identity, residual),
)
FEATURE_BLOCKS: tuple[Block, ...] = (dense, dense, dense, layernorm, activation, arithmetic, identity, residual)

# ---------------------------------------------------------------------------------------------------------- classifiers


def head(b: Growing, classes: int) -> str:
    if len(b.shape) == 3:
        kind = b.one_of("pool", "pool", "flatten", "mean", "convolution")
        channels, height, width = b.shape
        if kind == "convolution":
            b.then("Conv", b.scaled(classes, channels, 1, 1, fan_in=channels), shape=(classes, height, width))
            b.then("GlobalAveragePool", shape=(classes, 1, 1))
            b.then("Flatten", shape=(classes,))
            return b.at
        if kind == "mean":
            b.then("ReduceMean", axes=[2, 3], keepdims=0, shape=(channels,))
        elif kind == "pool" or channels * height * width > 512:
            b.then("GlobalAveragePool", shape=(channels, 1, 1))
            b.then("Flatten", shape=(channels,))
        else:
            b.then("Flatten", shape=(channels * height * width,))
    elif len(b.shape) == 2:
        size = b.shape[-1]
        if b.one_of(True, False):
            b.then("ReduceMean", axes=[1], keepdims=0, shape=(size,))
        else:
            b.then("Gather", b.number(0, np.int64), axis=1, shape=(size,))
    if b.one_of(True, False):
        b.at = b.gemm(b.at, "head", b.shape[0], classes)
    else:
        b.at = b.linear(b.at, "head", b.shape[0], classes)
    if b.one_of(True, False, False, False):
        b.then("Softmax", axis=-1)
    return b.at


@st.composite
def classifiers(draw: Draw) -> onnx.ModelProto:
    """Draw a valid classifier of 2 to 6 blocks, with a free or a fixed batch."""
    kind = draw(st.sampled_from(["image", "image", "tokens", "features"]))
    if kind == "image":
        blocks = IMAGE_BLOCKS
        side = draw(st.sampled_from([6, 8, 9]))
        shape: tuple[int, ...] = (draw(st.sampled_from([1, 3, 4])), side, side)
    elif kind == "tokens":
        blocks, shape = TOKEN_BLOCKS, (draw(st.sampled_from([3, 5])), draw(st.sampled_from([4, 8])))
    else:
        blocks, shape = FEATURE_BLOCKS, (draw(st.sampled_from([5, 12])),)
    b = Growing(draw, shape)
    for block in draw(st.lists(st.sampled_from(blocks), min_size=2, max_size=6)):
        block(b)
    classes = draw(st.sampled_from([2, 4, 10]))
    output = head(b, classes)
    batch = draw(st.sampled_from([None, None, None, 1, 4]))
    return b.model(output, shape, (classes,), batch)
