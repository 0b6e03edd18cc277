"""Operators that act on values one by one, with broadcasting."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor
from torch.nn import functional

from infoq_onnx.torch_graph.attributes import Attributes, Operator


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Attributes, Tensor], Tensor]:
    return lambda _, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Attributes, Tensor, Tensor], Tensor]:
    return lambda _, x, y: function(x, y)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda _, *inputs: functools.reduce(function, inputs)


def torch_type(kind: int) -> torch.dtype:
    """Return the torch type of an ONNX element type."""
    return torch.from_numpy(np.empty(0, helper.tensor_dtype_to_np_dtype(kind))).dtype


def _cast(attributes: Attributes, x: Tensor) -> Tensor:
    return x.to(torch_type(attributes.get("to", onnx.TensorProto.FLOAT)))


def _clip(attributes: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    del attributes
    if low is None and high is None:
        return x
    # Min after Max, as where low is above high
    return torch.clamp(x, low, high)


def _div(attributes: Attributes, x: Tensor, y: Tensor) -> Tensor:
    del attributes
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _mod(attributes: Attributes, x: Tensor, y: Tensor) -> Tensor:
    return torch.fmod(x, y) if attributes.get("fmod", 0) else torch.remainder(x, y)


def _gelu(attributes: Attributes, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=attributes.get("approximate", "none"))


def _hard_sigmoid(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.clamp(attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5), 0.0, 1.0)


def _prelu(attributes: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    del attributes
    return torch.where(x < 0, slope * x, x)


def _selu(attributes: Attributes, x: Tensor) -> Tensor:
    alpha = attributes.get("alpha", 1.67326319217681884765625)
    gamma = attributes.get("gamma", 1.05070102214813232421875)
    return gamma * torch.where(x > 0, x, alpha * (torch.exp(torch.clamp(x, max=0.0)) - 1.0))


def _shrink(attributes: Attributes, x: Tensor) -> Tensor:
    bias, limit = attributes.get("bias", 0.0), attributes.get("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero))


def _swish(attributes: Attributes, x: Tensor) -> Tensor:
    return x * torch.sigmoid(attributes.get("alpha", 1.0) * x)


def _thresholded_relu(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.where(x > attributes.get("alpha", 1.0), x, torch.zeros_like(x))


def _is_inf(attributes: Attributes, x: Tensor) -> Tensor:
    up, down = attributes.get("detect_positive", 1), attributes.get("detect_negative", 1)
    return torch.isposinf(x) & bool(up) | torch.isneginf(x) & bool(down)


def _mean(attributes: Attributes, *inputs: Tensor) -> Tensor:
    del attributes
    return functools.reduce(torch.add, inputs) / len(inputs)


def _pow(attributes: Attributes, x: Tensor, y: Tensor) -> Tensor:
    del attributes
    # a power of one value has a derivative where the base is 0, which a power of tensors has not
    return torch.pow(x, y.item()) if y.numel() == 1 and not y.requires_grad else torch.pow(x, y)


def _where(attributes: Attributes, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    del attributes
    return torch.where(condition, x, y)


ELEMENTWISE: dict[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Acos": _unary(torch.acos),
    "Acosh": _unary(torch.acosh),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "Asin": _unary(torch.asin),
    "Asinh": _unary(torch.asinh),
    "Atan": _unary(torch.atan),
    "Atanh": _unary(torch.atanh),
    "Cast": _cast,
    "CastLike": lambda _, x, like: x.to(like.dtype),
    "Ceil": _unary(torch.ceil),
    "Celu": lambda a, x: functional.celu(x, a.get("alpha", 1.0)),
    "Clip": _clip,
    "Cos": _unary(torch.cos),
    "Cosh": _unary(torch.cosh),
    "Div": _div,
    "Elu": lambda a, x: functional.elu(x, a.get("alpha", 1.0)),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Gelu": _gelu,
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(functional.hardswish),
    "Identity": _unary(lambda x: x),
    "IsInf": _is_inf,
    "IsNaN": _unary(torch.isnan),
    "LeakyRelu": lambda a, x: functional.leaky_relu(x, a.get("alpha", 0.01)),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "Max": _folded(torch.maximum),
    "Mean": _mean,
    "Min": _folded(torch.minimum),
    "Mish": _unary(functional.mish),
    "Mod": _mod,
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "PRelu": _prelu,
    "Pow": _pow,
    "Reciprocal": _unary(torch.reciprocal),
    "Relu": _unary(torch.relu),
    "Round": _unary(torch.round),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Sinh": _unary(torch.sinh),
    "Softplus": _unary(functional.softplus),
    "Softsign": _unary(functional.softsign),
    "Sqrt": _unary(torch.sqrt),
    "Sub": _binary(torch.sub),
    "Sum": _folded(torch.add),
    "Swish": _swish,
    "Tan": _unary(torch.tan),
    "Tanh": _unary(torch.tanh),
    "ThresholdedRelu": _thresholded_relu,
    "Where": _where,
    "Xor": _binary(torch.logical_xor),
}
