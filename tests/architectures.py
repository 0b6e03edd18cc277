"""Small transformers and their kin, in the form in which PyTorch exports them, with a free batch or a fixed one.

A fixed batch makes every shape known, and onnxruntime then fuses what it leaves alone otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from onnx import ModelProto

from tests.networks import Builder

CLASSES = 5
SIZE = 16


class Blocks(Builder):
    """Adds what these architectures are made of."""

    def __init__(self, batch: int | None) -> None:
        super().__init__(0)
        self.batch = batch

    def shaped(self, x: str, name: str, *sizes: int) -> str:
        """Reshape to [batch · …, *sizes]; -1 stands for the first where the batch is free."""
        return self.op("Reshape", [x, self.constant(f"{name}_shape", sizes, np.int64)], name)

    def leading(self, times: int = 1) -> int:
        return -1 if self.batch is None else self.batch * times

    def turned(self, x: str, name: str, *order: int) -> str:
        return self.op("Transpose", [x], name, perm=list(order))

    def norm(self, x: str, name: str, dim: int) -> str:
        scale = self.constant(f"{name}_scale", self.random.uniform(0.5, 1.5, dim))
        return self.op("LayerNormalization", [x, scale, self.constant(f"{name}_shift", np.zeros(dim))], name, axis=-1)

    def gelu(self, x: str, name: str) -> str:
        scaled = self.op("Div", [x, self.constant("root2", math.sqrt(2))], f"{name}_div")
        raised = self.op("Add", [self.op("Erf", [scaled], f"{name}_erf"), self.constant("one", 1.0)], f"{name}_add")
        return self.op("Mul", [self.op("Mul", [x, raised], f"{name}_mul"), self.constant("half", 0.5)], name)

    def mlp(self, x: str, name: str, dim: int, hidden: int) -> str:
        return self.linear(
            self.gelu(self.linear(x, f"{name}.in", dim, hidden), f"{name}.act"), f"{name}.out", hidden, dim
        )

    def attention(self, x: str, name: str, tokens: int, dim: int, times: int = 1, bias: bool = False) -> str:
        """Add attention of two heads on [batch · times, tokens, dim]."""
        first, head = self.leading(times), dim // 2
        parts = {}
        for part, order in (("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3))):
            heads = self.shaped(
                self.linear(x, f"{name}.{part}", dim, dim), f"{name}.{part}.heads", first, tokens, 2, head
            )
            parts[part] = self.turned(heads, f"{name}.{part}.order", *order)
        scaled = self.op("Mul", [parts["q"], self.constant("scale", 1 / math.sqrt(head))], f"{name}.scaled")
        scores = self.op("MatMul", [scaled, parts["k"]], f"{name}.scores")
        if bias:
            scores = self.op("Add", [scores, self.normal(f"{name}.bias", 1, 2, tokens, tokens)], f"{name}.biased")
        mixed = self.op("MatMul", [self.op("Softmax", [scores], f"{name}.softmax", axis=-1), parts["v"]], f"{name}.mix")
        merged = self.shaped(self.turned(mixed, f"{name}.merge", 0, 2, 1, 3), f"{name}.merged", first, tokens, dim)
        return self.linear(merged, f"{name}.proj", dim, dim)

    def patches(self, dim: int) -> str:
        """Cut the image into 4 × 4 patches: [batch, dim, 4, 4]."""
        weight = self.normal("patch_w", dim, 3, 4, 4, fan_in=48)
        return self.op("Conv", ["x", weight, self.constant("patch_b", np.zeros(dim))], "patch", strides=[4, 4])

    def residual(self, x: str, y: str, name: str) -> str:
        return self.op("Add", [x, y], name)

    def finished(self, x: str, dim: int, axes: list[int]) -> ModelProto:
        mean = self.op("ReduceMean", [x], "mean", axes=axes, keepdims=0)
        return self.model(self.gemm(mean, "fc", dim, CLASSES), (3, SIZE, SIZE), (CLASSES,), self.batch)


def vit(batch: int | None, dim: int = 16) -> ModelProto:
    """Patches as tokens, two blocks of attention and an MLP."""
    b = Blocks(batch)
    x = b.turned(b.shaped(b.patches(dim), "rows", b.leading(), dim, 16), "tokens", 0, 2, 1)
    x = b.residual(x, b.normal("position", 1, 16, dim), "positioned")
    for name in ("one", "two"):
        x = b.residual(x, b.attention(b.norm(x, f"{name}.n1", dim), name, 16, dim), f"{name}.a")
        x = b.residual(x, b.mlp(b.norm(x, f"{name}.n2", dim), f"{name}.mlp", dim, 2 * dim), f"{name}.m")
    return b.finished(b.norm(x, "norm", dim), dim, [1])


def swin(batch: int | None, dim: int = 16) -> ModelProto:
    """Attention in windows of 2 × 2, once shifted, with a position bias; then a merge by a Linear without bias."""
    b = Blocks(batch)
    x = b.turned(b.patches(dim), "last", 0, 2, 3, 1)
    for name, shift in (("one", False), ("two", True)):
        y = b.norm(x, f"{name}.n1", dim)
        y = _rolled(b, y, f"{name}.to", 1) if shift else y
        y = b.turned(b.shaped(y, f"{name}.cut", b.leading(), 2, 2, 2, 2, dim), f"{name}.windows", 0, 1, 3, 2, 4, 5)
        y = b.shaped(y, f"{name}.in", b.leading(4), 4, dim)
        y = b.attention(y, name, 4, dim, times=4, bias=True)
        y = b.turned(b.shaped(y, f"{name}.out", b.leading(), 2, 2, 2, 2, dim), f"{name}.back", 0, 1, 3, 2, 4, 5)
        y = b.shaped(y, f"{name}.joined", b.leading(), 4, 4, dim)
        y = _rolled(b, y, f"{name}.fro", 3) if shift else y
        x = b.residual(x, y, f"{name}.a")
        x = b.residual(x, b.mlp(b.norm(x, f"{name}.n2", dim), f"{name}.mlp", dim, 2 * dim), f"{name}.m")
    merged = b.op(
        "Concat",
        [_part(b, x, f"part{row}{column}", row, column) for column in (0, 1) for row in (0, 1)],
        "merge",
        axis=-1,
    )
    weight = b.normal("reduce_w", 4 * dim, 2 * dim, fan_in=8 * dim)
    x = b.op("MatMul", [b.norm(merged, "merge_norm", 4 * dim), weight], "reduce")
    return b.finished(b.norm(x, "norm", 2 * dim), 2 * dim, [1, 2])


def _sliced(b: Blocks, x: str, name: str, axis: int, start: int, stop: int, step: int = 1) -> str:
    ends = [
        b.constant(f"{name}_{part}", [value], np.int64)
        for part, value in (("start", start), ("stop", stop), ("axis", axis), ("step", step))
    ]
    return b.op("Slice", [x, *ends], name)


def _rolled(b: Blocks, x: str, name: str, by: int) -> str:
    for axis in (1, 2):
        parts = [_sliced(b, x, f"{name}{axis}b", axis, by, 4), _sliced(b, x, f"{name}{axis}a", axis, 0, by)]
        x = b.op("Concat", parts, f"{name}{axis}", axis=axis)
    return x


def _part(b: Blocks, x: str, name: str, row: int, column: int) -> str:
    return _sliced(b, _sliced(b, x, f"{name}r", 1, row, 4, 2), f"{name}c", 2, column, 4, 2)


def convnext(batch: int | None, dim: int = 16) -> ModelProto:
    """Depthwise convolutions, each in front of a LayerNormalization and an MLP with channels last."""
    b = Blocks(batch)
    x = b.patches(dim)
    for name in ("one", "two"):
        y = b.turned(b.conv(x, f"{name}.dw", dim, dim, kernel=3, group=dim), f"{name}.last", 0, 2, 3, 1)
        y = b.mlp(b.norm(y, f"{name}.n", dim), f"{name}.mlp", dim, 2 * dim)
        y = b.op("Mul", [b.constant(f"{name}.gamma", np.full(dim, 0.5)), y], f"{name}.scaled")
        x = b.residual(x, b.turned(y, f"{name}.first", 0, 3, 1, 2), f"{name}.a")
    return b.finished(x, dim, [2, 3])


def mixer(batch: int | None, dim: int = 16) -> ModelProto:
    """MLPs over tokens and over channels in turn."""
    b = Blocks(batch)
    x = b.turned(b.shaped(b.patches(dim), "rows", b.leading(), dim, 16), "tokens", 0, 2, 1)
    for name in ("one", "two"):
        y = b.turned(b.norm(x, f"{name}.n1", dim), f"{name}.to", 0, 2, 1)
        x = b.residual(x, b.turned(b.mlp(y, f"{name}.t", 16, 32), f"{name}.fro", 0, 2, 1), f"{name}.a")
        x = b.residual(x, b.mlp(b.norm(x, f"{name}.n2", dim), f"{name}.c", dim, 2 * dim), f"{name}.m")
    return b.finished(b.norm(x, "norm", dim), dim, [1])


ARCHITECTURES: dict[str, Callable[[int | None], ModelProto]] = {
    "vit": vit,
    "swin": swin,
    "convnext": convnext,
    "mixer": mixer,
}
