"""Quantizers whose step sizes are learned: LSQ (Esser et al. 2019) and LSQ+ (Bhalgat et al. 2020).

A value v is quantized to v̂ = s · clip(round(v/s) + z, 0, n) − s · z. Rounding has a straight-through gradient, so that

    ∂v̂/∂v = 1 inside the range, 0 outside
    ∂v̂/∂s = round(v/s) − v/s inside, −z below, n − z above          (LSQ, Eq. 3)
    ∂v̂/∂z = 0 inside, −s outside                                    (LSQ+, Eq. 6, with β = −s · z)

The gradient of s is multiplied by 1/√(N · n), where N is the number of values that share the step (LSQ, Section 2.2).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infoq_onnx.training import kernels


class FakeQuantize(torch.autograd.Function):
    """Quantize to unsigned codes and back: one function, because each part of it would keep a tensor for gradients."""

    @staticmethod
    def forward(context: Any, x: Tensor, step: Tensor, zero_point: Tensor, largest: int) -> Tensor:
        """Quantize x with a step and a zero point, both scalars; codes reach from 0 to `largest`."""
        context.save_for_backward(x, step, zero_point)
        context.largest = largest
        if _on_cpu(x):
            values = kernels.quantized(_flat(x), *_numbers(step, zero_point), largest)
            return torch.from_numpy(values).reshape(x.shape)
        return _codes(_precise(x), step, zero_point).clamp_(0, largest).sub_(zero_point).mul_(step)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, the step and the zero point."""
        (gradient,) = gradients
        x, step, zero_point = context.saved_tensors
        largest: int = context.largest
        if _on_cpu(x):
            found = kernels.gradients(_flat(x), *_numbers(step, zero_point), largest, _flat(gradient))
            return (
                torch.from_numpy(found[0]).reshape(x.shape),
                step.new_tensor(found[1]),
                step.new_tensor(found[2]),
                None,
            )
        given, x = x, _precise(x)
        codes = _codes(x, step, zero_point)
        inside = (codes >= 0) & (codes <= largest)
        of_x = gradient * inside
        of_step = of_zero_point = None
        if context.needs_input_grad[1]:
            distance = codes.clamp_(0, largest).sub_(zero_point)
            # values inside: round(x/s) − x/s
            share = (
                torch.sum(gradient * distance, dtype=torch.float64) - torch.sum(of_x * x, dtype=torch.float64) / step
            )
            of_step = share.to(step.dtype)
        if context.needs_input_grad[2]:
            outside = torch.sum(gradient, dtype=torch.float64) - torch.sum(of_x, dtype=torch.float64)
            of_zero_point = (-step * outside).to(zero_point.dtype)
        return of_x.to(given.dtype), of_step, of_zero_point, None


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32


def _flat(x: Tensor) -> Any:
    return x.detach().contiguous().reshape(-1).numpy()


def _numbers(step: Tensor, zero_point: Tensor) -> tuple[np.float32, np.float32]:
    return np.float32(step.item()), np.float32(zero_point.item())


def _precise(x: Tensor) -> Tensor:
    """Return values of half precision in float32: a bfloat16 cannot tell all codes apart."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _codes(x: Tensor, step: Tensor, zero_point: Tensor) -> Tensor:
    # as QuantizeLinear: a division in float32, rounded half to even
    return torch.div(x, step).round_().add_(zero_point)


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * context.factor, None


class _Replaced(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, value: Tensor) -> Tensor:
        del context, x
        return value.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        del context
        return gradients[0], None


def fake_quantize(x: Tensor, step: Tensor, zero_point: Tensor, largest: int) -> Tensor:
    """Quantize x to unsigned codes from 0 to `largest` and back; step and zero point are scalars."""
    found: Tensor = FakeQuantize.apply(x, step, zero_point, largest)  # type: ignore[no-untyped-call,unused-ignore]
    return found


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x; its gradient is multiplied by a factor."""
    found: Tensor = _ScaledGradient.apply(x, factor)  # type: ignore[no-untyped-call,unused-ignore]
    return found


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """Return `value`, with the gradient going to x as if it were x."""
    found: Tensor = _Replaced.apply(x, value)  # type: ignore[no-untyped-call,unused-ignore]
    return found


def gradient_scale(values: int, largest: int) -> float:
    """Return the factor for the gradient of a step that `values` values share (LSQ, Section 2.2).

    Parameters
    ----------
    values : number of values; for activations, those of one image
    largest : number of positive levels, Q_P
    """
    return 1.0 / math.sqrt(max(1, values * largest))


def quantize_weight(latent: Tensor, steps: Tensor, origins: Tensor, spacing: int, count: int) -> Tensor:
    """Quantize a weight to the levels of its channels.

    Parameters
    ----------
    latent : weight, any shape
    steps : scale of each channel, broadcasting against the weight
    origins : lowest code of each channel, likewise
    spacing : distance of neighbouring levels in codes, see `quantize.levels`
    count : number of levels of a channel

    Returns
    -------
    Tensor
        steps · code, code = origin + spacing · clip(round((latent/steps − origin)/spacing), 0, count − 1), with
        straight-through gradients.
    """
    codes = codes_of(latent.detach(), steps.detach(), origins, spacing, count)
    ratio = latent / steps
    inside = (ratio >= origins - 0.5 * spacing) & (ratio <= origins + spacing * (count - 0.5))
    return steps * straight_through(torch.where(inside, ratio, codes), codes)


def codes_of(latent: Tensor, steps: Tensor, origins: Tensor, spacing: int, count: int) -> Tensor:
    """Return the codes of a weight as float values; see `quantize_weight`."""
    return origins + spacing * torch.clamp(torch.round((latent / steps - origins) / spacing), 0, count - 1)
