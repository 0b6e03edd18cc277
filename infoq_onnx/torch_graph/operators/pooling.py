"""Pooling."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from infoq_onnx.torch_graph.attributes import Attributes, Operator
from infoq_onnx.torch_graph.operators.products import padded, pads_of


def _window(attributes: Attributes, x: Tensor) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Return kernel, strides, dilations, pads, and what more ceil_mode needs behind each axis."""
    kernel = attributes.ints("kernel_shape") or []
    axes = len(kernel)
    strides = attributes.ints("strides") or [1] * axes
    dilations = attributes.ints("dilations") or [1] * axes
    pads = pads_of(attributes, x.shape[2:], kernel, strides, dilations)
    behind = [0] * axes
    if attributes.get("ceil_mode", 0):
        for axis, size in enumerate(x.shape[2:]):
            width = dilations[axis] * (kernel[axis] - 1) + 1
            room = size + pads[axis] + pads[axes + axis] - width
            count = math.ceil(room / strides[axis])
            if count * strides[axis] >= size + pads[axis]:
                # a window that begins in the padding behind the image is left out
                count -= 1
            behind[axis] = max(0, count * strides[axis] - room)
    return kernel, strides, dilations, pads, behind


def _max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel, strides, dilations, pads, behind = _window(attributes, x)
    axes = len(kernel)
    sides = pads[:axes] + [pad + more for pad, more in zip(pads[axes:], behind, strict=True)]
    function = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[axes - 1]
    return function(padded(x, sides, -math.inf), kernel, strides, 0, dilations)


def _average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel, strides, dilations, pads, behind = _window(attributes, x)
    axes = len(kernel)
    count_pads = bool(attributes.get("count_include_pad", 0))
    sides = pads[:axes] + [pad + more for pad, more in zip(pads[axes:], behind, strict=True)]
    if not any(sides) and set(dilations) == {1}:
        function = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[axes - 1]
        return function(x, kernel, strides)
    counted = x.new_ones((1, 1, *x.shape[2:]))
    # what ceil_mode adds never counts
    counted = padded(padded(counted, pads, 1.0 if count_pads else 0.0), [0] * axes + behind)
    return _sums(padded(x, sides), kernel, strides, dilations) / _sums(counted, kernel, strides, dilations)


def _sums(x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> Tensor:
    """Sum over each window."""
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[len(kernel) - 1]
    ones = x.new_ones((1, 1, *kernel))
    planes = x.reshape(-1, 1, *x.shape[2:])
    sums = function(planes, ones, None, strides, 0, dilations)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


def _lp_pool(attributes: Attributes, x: Tensor) -> Tensor:
    kernel, strides, dilations, pads, behind = _window(attributes, x)
    axes, p = len(kernel), float(attributes.get("p", 2))
    sides = pads[:axes] + [pad + more for pad, more in zip(pads[axes:], behind, strict=True)]
    return torch.pow(_sums(padded(torch.pow(x.abs(), p), sides), kernel, strides, dilations), 1.0 / p)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


def _global_lp_pool(attributes: Attributes, x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, float(attributes.get("p", 2)), dim=_spatial(x), keepdim=True)
    return norm


POOLING: dict[str, Operator] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda _, x: x.mean(dim=_spatial(x), keepdim=True),
    "GlobalLpPool": _global_lp_pool,
    "GlobalMaxPool": lambda _, x: x.amax(dim=_spatial(x), keepdim=True),
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
}
