"""Operators that reduce axes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from infoq_onnx.torch_graph.attributes import Attributes, Operator

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _reduction(function: Reduce) -> Callable[..., Tensor]:
    def reduced(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        # an attribute until opset 12 to 17, an input since
        given = attributes.ints("axes") if axes is None else axes.tolist()
        if not given and attributes.get("noop_with_empty_axes", 0):
            return x
        over = given or list(range(x.dim()))
        return function(x, over, bool(attributes.get("keepdims", 1)))

    return reduced


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _arg(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def found(attributes: Attributes, x: Tensor) -> Tensor:
        axis, keep = attributes.get("axis", 0), bool(attributes.get("keepdims", 1))
        if attributes.get("select_last_index", 0):
            return x.shape[axis] - 1 - function(x.flip(axis), axis, keep)
        return function(x, axis, keep)

    return found


def _cumsum(attributes: Attributes, x: Tensor, axis: Tensor) -> Tensor:
    over = int(axis)
    x = x.flip(over) if attributes.get("reverse", 0) else x
    sums = torch.cumsum(x, over, dtype=x.dtype)
    sums = sums - x if attributes.get("exclusive", 0) else sums
    return sums.flip(over) if attributes.get("reverse", 0) else sums


def _top_k(attributes: Attributes, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    # of equal values, ONNX takes those with the lowest indices, which only a stable sort promises
    axis = attributes.get("axis", -1)
    values, indices = torch.sort(x, stable=True, dim=axis, descending=bool(attributes.get("largest", 1)))
    return values.narrow(axis, 0, int(k)), indices.narrow(axis, 0, int(k))


REDUCTIONS: dict[str, Operator] = {
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "CumSum": _cumsum,
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceLogSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "ReduceLogSumExp": _reduction(lambda x, axes, keep: torch.logsumexp(x, axes, keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduction(_prod),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype)),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "TopK": _top_k,
}
