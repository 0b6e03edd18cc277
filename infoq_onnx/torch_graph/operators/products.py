"""Operators that multiply by weights, or activations by activations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from infoq_onnx.torch_graph.attributes import Attributes, Operator


def pads_of(
    attributes: Attributes,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:
    """Return the padding before each spatial axis, then that behind each, as `pads` or `auto_pad` ask for."""
    auto, axes = attributes.get("auto_pad", "NOTSET"), len(kernel)
    if auto == "NOTSET":
        return attributes.ints("pads") or [0] * (2 * axes)
    if auto == "VALID":
        return [0] * (2 * axes)
    totals = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        results = -(-size // stride)
        totals.append(max(0, (results - 1) * stride + dilation * (width - 1) + 1 - size))
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return less + more if auto == "SAME_UPPER" else more + less


def padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last axes of a tensor; `pads` as in ONNX: those before each axis, then those behind each."""
    if not any(pads):
        return x
    axes = len(pads) // 2
    # torch wants the last axis first, and both sides of an axis together
    sides = [side for axis in reversed(range(axes)) for side in (pads[axis], pads[axis + axes])]
    return functional.pad(x, sides, value=value)


def _conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axes = weight.dim() - 2
    strides = attributes.ints("strides") or [1] * axes
    dilations = attributes.ints("dilations") or [1] * axes
    pads = pads_of(attributes, x.shape[2:], weight.shape[2:], strides, dilations)
    groups = attributes.get("group", 1)
    if pads[:axes] != pads[axes:]:
        x, pads = padded(x, pads), [0] * (2 * axes)
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[axes - 1]
    return function(x, weight, bias, strides, pads[:axes], dilations, groups)


def _conv_transpose(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axes = weight.dim() - 2
    strides = attributes.ints("strides") or [1] * axes
    dilations = attributes.ints("dilations") or [1] * axes
    extra = attributes.ints("output_padding") or [0] * axes
    function = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[axes - 1]
    whole = function(x, weight, bias, strides, 0, 0, attributes.get("group", 1), dilations)
    # the whole result, of which padding takes a part away and output_padding adds one
    kernel = [dilation * (width - 1) + 1 for dilation, width in zip(dilations, weight.shape[2:], strict=True)]
    full = [stride * (size - 1) + width for stride, size, width in zip(strides, x.shape[2:], kernel, strict=True)]
    wanted = attributes.ints("output_shape")
    auto = attributes.get("auto_pad", "NOTSET")
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
    if wanted is None:
        pads = attributes.ints("pads") or [0] * (2 * axes)
    else:
        totals = [size + more - want for size, more, want in zip(full, extra, wanted[-axes:], strict=True)]
        less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
        pads = less + more if auto == "SAME_UPPER" else more + less
    sides = [-pad for pad in pads[:axes]] + [more - pad for more, pad in zip(extra, pads[axes:], strict=True)]
    result = padded(whole, sides)
    if bias is not None and any(side > 0 for side in sides):
        # what output_padding adds gets the bias, too
        spread = bias.reshape(-1, *([1] * axes))
        result = padded(whole - spread, sides) + spread
    return result


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if alpha == beta == 1.0 and c is not None and c.dim() == 1:
        return torch.addmm(c, a, b)
    result = a @ b if alpha == 1.0 else alpha * (a @ b)
    if c is None:
        return result
    return result + (c if beta == 1.0 else beta * c)


def _einsum(attributes: Attributes, *inputs: Tensor) -> Tensor:
    return torch.einsum(attributes.get("equation", ""), *inputs)


PRODUCTS: dict[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": lambda _, a, b: torch.matmul(a, b),
}
