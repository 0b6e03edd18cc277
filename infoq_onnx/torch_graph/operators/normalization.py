"""Normalisation and softmax."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from infoq_onnx.torch_graph.attributes import Attributes, Operator


def _batch_normalization(
    attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    return functional.batch_norm(x, mean, variance, scale, bias, eps=attributes.get("epsilon", 1e-5))


def _instance_normalization(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=attributes.get("epsilon", 1e-5))


def _layer_normalization(
    attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    axis, epsilon = attributes.get("axis", -1) % x.dim(), attributes.get("epsilon", 1e-5)
    shape = x.shape[axis:]
    scale = scale.expand(shape) if scale.shape != shape else scale
    bias = bias.expand(shape) if bias is not None and bias.shape != shape else bias
    if attributes.outputs == 1:
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    result, mean, deviation = torch.native_layer_norm(x, shape, scale, bias, epsilon)
    return result, mean, deviation


def _rms_normalization(attributes: Attributes, x: Tensor, scale: Tensor) -> Tensor:
    axes = list(range(attributes.get("axis", -1) % x.dim(), x.dim()))
    square = x.square().mean(dim=axes, keepdim=True)
    return x * torch.rsqrt(square + attributes.get("epsilon", 1e-5)) * scale


def _group_normalization(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups, epsilon = attributes.get("num_groups", 1), attributes.get("epsilon", 1e-5)
    if attributes.opset < 21:
        # one factor a group until opset 20, one a channel from 21
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, epsilon)


def _lrn(attributes: Attributes, x: Tensor) -> Tensor:
    size = attributes.get("size", 1)
    alpha, beta, bias = attributes.get("alpha", 1e-4), attributes.get("beta", 0.75), attributes.get("bias", 1.0)
    channels = x.square().flatten(2).transpose(1, 2)
    sums = functional.pad(channels, ((size - 1) // 2, size - 1 - (size - 1) // 2)).unfold(2, size, 1).sum(-1)
    return x / (bias + alpha / size * sums.transpose(1, 2).reshape(x.shape)) ** beta


def _lp_normalization(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", -1)
    return functional.normalize(x, p=float(attributes.get("p", 2)), dim=axis, eps=1e-30)


def _mean_variance(attributes: Attributes, x: Tensor) -> Tensor:
    axes = list(attributes.get("axes", (0, 2, 3)))
    mean = x.mean(dim=axes, keepdim=True)
    deviation = (x - mean).square().mean(dim=axes, keepdim=True).sqrt()
    return (x - mean) / (deviation + 1e-9)


def _softmax(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.softmax(x, attributes.get("axis", -1))


def _log_softmax(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.log_softmax(x, attributes.get("axis", -1))


NORMALIZATION: dict[str, Operator] = {
    "BatchNormalization": _batch_normalization,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LRN": _lrn,
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": _log_softmax,
    "LpNormalization": _lp_normalization,
    "MeanVarianceNormalization": _mean_variance,
    "RMSNormalization": _rms_normalization,
    "Softmax": _softmax,
}
