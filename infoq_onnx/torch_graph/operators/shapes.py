"""Operators that move values, and shape arithmetic."""

from __future__ import annotations

import math

import numpy as np
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

from infoq_onnx.torch_graph.attributes import Attributes, Operator


def _axes(attributes: Attributes, axes: Tensor | None) -> list[int] | None:
    """Return axes from the input (since opset 13) or the attribute."""
    return attributes.ints("axes") if axes is None else axes.tolist()


def _beside(index: Tensor, x: Tensor) -> Tensor:
    return index.to(x.device)


def _constant_of_shape(attributes: Attributes, shape: Tensor) -> Tensor:
    given = attributes.tensor("value")
    value = np.zeros(1, np.float32) if given is None else numpy_helper.to_array(given)
    return torch.from_numpy(np.full(shape.tolist(), value.item(), value.dtype))


def _depth_to_space(attributes: Attributes, x: Tensor) -> Tensor:
    size = attributes.get("blocksize", 1)
    n, c, h, w = x.shape
    if attributes.get("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, size)
    parts = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // size**2, h * size, w * size)


def _space_to_depth(attributes: Attributes, x: Tensor) -> Tensor:
    size = attributes.get("blocksize", 1)
    n, c, h, w = x.shape
    order = (0, 1, 3, 5, 2, 4) if attributes.get("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    parts = x.reshape(n, c, h // size, size, w // size, size).permute(order)
    return parts.reshape(n, c * size**2, h // size, w // size)


def _expand(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    del attributes
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape.tolist())))


def _flatten(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _gather(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = attributes.get("axis", 0) % x.dim()
    where = _beside(indices, x).long()
    where = torch.where(where < 0, where + x.shape[axis], where)
    found = torch.index_select(x, axis, where.reshape(-1))
    return found.reshape(*x.shape[:axis], *where.shape, *x.shape[axis + 1 :])


def _gather_elements(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = attributes.get("axis", 0)
    where = _beside(indices, x).long()
    return torch.gather(x, axis, torch.where(where < 0, where + x.shape[axis], where))


def _gather_nd(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    shared = attributes.get("batch_dims", 0)
    where = _beside(indices, x).long()
    if shared:
        leading = torch.meshgrid(*(torch.arange(n, device=x.device) for n in x.shape[:shared]), indexing="ij")
        spread = [part.reshape(*part.shape, *([1] * (where.dim() - 1 - shared))) for part in leading]
        return x[(*spread, *where.unbind(-1))]
    return x[tuple(where.unbind(-1))]


def _pad(
    attributes: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    given = pads.tolist()
    over = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes.tolist()]
    sides = [[0, 0] for _ in range(x.dim())]
    for index, axis in enumerate(over):
        sides[axis] = [given[index], given[len(over) + index]]
    mode = attributes.get("mode", "constant")
    if mode == "constant":
        flat = [side for axis in reversed(sides) for side in axis]
        return functional.pad(x, flat, value=0.0 if value is None else value.item())
    for axis, (before, behind) in enumerate(sides):
        # one axis at a time, as torch pads certain ranks only
        if before or behind:
            x = x.index_select(axis, torch.tensor(_source(x.shape[axis], before, behind, mode), device=x.device))
    return x


def _source(size: int, before: int, behind: int, mode: str) -> list[int]:
    positions = range(-before, size + behind)
    if mode == "edge":
        return [min(max(position, 0), size - 1) for position in positions]
    if mode == "wrap":
        return [position % size for position in positions]
    period = max(1, 2 * (size - 1))
    return [min(position % period, period - position % period) for position in positions]


def _range(attributes: Attributes, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    del attributes
    count = max(0, math.ceil((limit.item() - start.item()) / step.item()))
    return start + step * torch.arange(count, dtype=start.dtype)


def _reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    wanted = shape.tolist()
    if not attributes.get("allowzero", 0):
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


def _resize(
    attributes: Attributes,
    x: Tensor,
    region: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    del region
    factors = None if scales is None or scales.numel() == 0 else scales.tolist()
    over = attributes.ints("axes")
    if over is not None:
        given, values = dict.fromkeys(range(x.dim())), factors or (sizes.tolist() if sizes is not None else [])
        given.update(zip([axis % x.dim() for axis in over], values, strict=True))
        filled = [1.0 if factors else x.shape[axis] if value is None else value for axis, value in given.items()]
        filled = [new if (new := given[axis]) is not None else old for axis, old in enumerate(filled)]
        factors, sizes = (filled, None) if factors else (None, torch.tensor(filled))
    if sizes is not None:
        target = sizes.tolist()
        factors = [new / old for new, old in zip(target, x.shape, strict=True)]
    else:
        assert factors is not None
        target = [math.floor(size * factor) for size, factor in zip(x.shape, factors, strict=True)]
    for axis, (size, factor) in enumerate(zip(target, factors, strict=True)):
        if size != x.shape[axis] or factor != 1.0:
            x = _resized(attributes, x, axis, size, factor)
    return x


def _resized(attributes: Attributes, x: Tensor, axis: int, size: int, factor: float) -> Tensor:
    """Resize one axis; nearest, linear and cubic interpolation are separable."""
    old = x.shape[axis]
    at = np.arange(size, dtype=np.float64)
    how = attributes.get("coordinate_transformation_mode", "half_pixel")
    if how == "align_corners":
        length = factor * old
        places = at * (old - 1) / (length - 1) if length != 1 else np.zeros(size)
    elif how == "asymmetric":
        places = at / factor
    elif how == "pytorch_half_pixel" and size == 1:
        places = np.zeros(1)
    elif how == "half_pixel_symmetric":
        places = old / 2 * (1 - size / (factor * old)) + (at + 0.5) / factor - 0.5
    else:
        places = (at + 0.5) / factor - 0.5
    mode = attributes.get("mode", "nearest")
    if mode == "nearest":
        rounding = attributes.get("nearest_mode", "round_prefer_floor")
        if rounding in ("ceil", "floor"):
            rounded = np.ceil(places) if rounding == "ceil" else np.floor(places)
        else:
            rounded = np.floor(places + 0.5) if rounding == "round_prefer_ceil" else np.ceil(places - 0.5)
        index = torch.from_numpy(np.clip(rounded, 0, old - 1).astype(np.int64)).to(x.device)
        return x.index_select(axis, index)
    matrix = np.zeros((size, old))
    base = np.floor(places).astype(np.int64)
    share = places - base
    if mode == "linear":
        taps = [(0, 1 - share), (1, share)]
    else:
        a = attributes.get("cubic_coeff_a", -0.75)
        taps = []
        for offset in (-1, 0, 1, 2):
            t = np.abs(share - offset)
            near, far = ((a + 2) * t - (a + 3)) * t * t + 1, a * (((t - 5) * t + 8) * t - 4)
            taps.append((offset, np.where(t <= 1, near, far)))
    for offset, weights in taps:
        np.add.at(matrix, (np.arange(size), np.clip(base + offset, 0, old - 1)), weights)
    kernel = torch.from_numpy(matrix).to(x)
    return torch.movedim(torch.movedim(x, axis, -1) @ kernel.T, -1, axis)


def _shape(attributes: Attributes, x: Tensor) -> Tensor:
    end = attributes.get("end", x.dim())
    return torch.tensor(list(x.shape)[attributes.get("start", 0) : end], dtype=torch.int64)


def _slice(
    attributes: Attributes,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    del attributes
    over = list(range(len(starts))) if axes is None else axes.tolist()
    strides = [1] * len(over) if steps is None else steps.tolist()
    for axis, start, end, step in zip(over, starts.tolist(), ends.tolist(), strides, strict=True):
        size = x.shape[axis]
        places = range(size)[slice(start, None if step < 0 and end < -size else end, step)]
        if step > 0:
            index = [slice(None)] * x.dim()
            index[axis] = slice(places.start, places.stop, step)
            x = x[tuple(index)]
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))
    return x


def _split(attributes: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if sizes is None:
        count = attributes.get("num_outputs", attributes.outputs)
        return torch.split(x, -(-x.shape[axis] // count), axis)
    return torch.split(x, sizes.tolist(), axis)


def _squeeze(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    over = _axes(attributes, axes)
    return x.squeeze() if over is None else x.squeeze(tuple(over))


def _unsqueeze(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    over = _axes(attributes, axes) or []
    rank = x.dim() + len(over)
    for axis in sorted(axis % rank for axis in over):
        x = x.unsqueeze(axis)
    return x


def _transpose(attributes: Attributes, x: Tensor) -> Tensor:
    return x.permute(attributes.ints("perm") or list(reversed(range(x.dim()))))


def _trilu(attributes: Attributes, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return torch.triu(x, diagonal) if attributes.get("upper", 1) else torch.tril(x, diagonal)


def _scatter_elements(attributes: Attributes, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis = attributes.get("axis", 0)
    where = _beside(indices, x).long()
    where = torch.where(where < 0, where + x.shape[axis], where)
    how = {"none": None, "add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[attributes.get("reduction", "none")]
    return x.scatter(axis, where, updates) if how is None else x.scatter_reduce(axis, where, updates, how)


def _scatter_nd(attributes: Attributes, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    places = _beside(indices, x).long()
    how = attributes.get("reduction", "none")
    if how in ("none", "add"):
        return x.index_put(tuple(places.unbind(-1)), updates, accumulate=how == "add")
    # as positions in the flat tensor, because index_put reduces by sums only
    depth = places.shape[-1]
    inner = math.prod(x.shape[depth:])
    first = torch.zeros(places.shape[:-1], dtype=torch.int64, device=x.device)
    for axis in range(depth):
        place = places[..., axis]
        first = first * x.shape[axis] + torch.where(place < 0, place + x.shape[axis], place)
    flat = (first.reshape(-1, 1) * inner + torch.arange(inner, device=x.device)).reshape(-1)
    reduction = {"mul": "prod", "max": "amax", "min": "amin"}[how]
    return x.reshape(-1).scatter_reduce(0, flat, updates.reshape(-1), reduction).reshape(x.shape)


def _concat(attributes: Attributes, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, attributes.get("axis", 0))


def _one_hot(attributes: Attributes, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    size, axis = int(depth), attributes.get("axis", -1)
    where = indices.long()
    where = torch.where(where < 0, where + size, where)
    places = torch.arange(size, device=where.device)
    axis = axis % (where.dim() + 1)
    shape = [1] * (where.dim() + 1)
    shape[axis] = size
    hot = where.unsqueeze(axis) == places.reshape(shape)
    return torch.where(hot, values[1].to(hot.device), values[0].to(hot.device))


def _tile(attributes: Attributes, x: Tensor, repeats: Tensor) -> Tensor:
    del attributes
    return x.tile(tuple(repeats.tolist()))


SHAPES: dict[str, Operator] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Resize": _resize,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": lambda _, x: torch.tensor(x.numel()),
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
