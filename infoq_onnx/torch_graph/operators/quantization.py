"""QuantizeLinear and DequantizeLinear, with straight-through gradients.

The gradient of the rounding is taken to be 1. For a tensor that passes QuantizeLinear, Clip and DequantizeLinear, all
other gradients follow by the chain rule, and are those of LSQ (Esser et al. 2019) and LSQ+ (Bhalgat et al. 2020):
with ŷ = s · (clip(round(x/s) + z, 0, n) − z), ∂ŷ/∂s is round(x/s) − x/s inside the range, −z below and n − z above it;
∂ŷ/∂x is 1 inside and 0 outside; ∂ŷ/∂z is 0 inside and −s outside.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infoq_onnx.torch_graph.attributes import Attributes, Operator

_LIMITS = {
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.uint16: (0, 65535),
    torch.int16: (-32768, 32767),
    torch.int32: (-(2**31), 2**31 - 1),
}


class _Round(torch.autograd.Function):
    """Round half to even, with a gradient of 1."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        del context
        return torch.round(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        del context
        return gradients[0]


def straight_through_round(x: Tensor) -> Tensor:
    """Round half to even, with a gradient of 1."""
    rounded: Tensor = _Round.apply(x)  # type: ignore[no-untyped-call,unused-ignore]
    return rounded


def _spread(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Reshape a value per channel so that it broadcasts against x."""
    if values.dim() == 0 or values.numel() == 1:
        return values.reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)


def _quantize(attributes: Attributes, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    axis = attributes.get("axis", 1)
    low, high = _LIMITS[torch.uint8 if zero_point is None else zero_point.dtype]
    codes = straight_through_round(x / _spread(scale, x, axis))
    if zero_point is not None:
        codes = codes + _spread(zero_point, x, axis).to(codes.dtype)
    return torch.clamp(codes, low, high)


def _dequantize(attributes: Attributes, codes: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    axis = attributes.get("axis", 1)
    values = codes.to(scale.dtype)
    if zero_point is not None:
        values = values - _spread(zero_point, values, axis).to(values.dtype)
    return values * _spread(scale, values, axis)


QUANTIZATION: dict[str, Operator] = {"DequantizeLinear": _dequantize, "QuantizeLinear": _quantize}
