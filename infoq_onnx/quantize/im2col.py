"""Convolutions and matrix products in one form: rows of weights times columns of inputs.

A layer with G groups computes, for each group, outputs [R, p] = W [R, d] · X [d, p] at p positions. Every
input-dependent rounding algorithm works on this form, independent of the layer's operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
T = TypeVar("T", bound=np.generic)
Positions = npt.NDArray[np.int64] | None


@dataclass(frozen=True)
class Windows:
    """The geometry of a convolution; tuples have one entry per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads_before: tuple[int, ...]
    pads_after: tuple[int, ...]
    groups: int


def conv_columns(images: Float32, windows: Windows, positions: Positions = None) -> Float32:
    """Return the columns of a convolution's input (im2col).

    Parameters
    ----------
    images : input [n, C, *spatial]
    windows : geometry of the convolution; padding is with 0
    positions : output positions to take from every image, as row-major indices; None takes all

    Returns
    -------
    float32 array [G, p, d]
        p = n · (number of positions), image by image. d = C/G · (kernel elements), in the order of the weight's axes.
    """
    if set(windows.kernel) == set(windows.strides) == {1} and not any((*windows.pads_before, *windows.pads_after)):
        return conv_outputs(images, windows.groups, positions)
    pads = [(0, 0), (0, 0), *zip(windows.pads_before, windows.pads_after, strict=True)]
    padded = np.pad(images, pads) if any(sum(pad) for pad in pads) else images
    axes = tuple(range(2, images.ndim))
    extents = [dilation * (size - 1) + 1 for size, dilation in zip(windows.kernel, windows.dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(padded, extents, axis=axes)
    every = tuple(slice(None, None, stride) for stride in windows.strides)
    inside = tuple(slice(None, None, dilation) for dilation in windows.dilations)
    view = view[(slice(None), slice(None), *every, *inside)]
    n, channels, rank = images.shape[0], images.shape[1], len(axes)
    if positions is None:
        positions = np.arange(int(np.prod(view.shape[2 : 2 + rank])))
    # [n, C, p, *kernel]: indexing copies only the chosen positions
    where: tuple[Any, ...] = np.unravel_index(positions, view.shape[2 : 2 + rank])
    taken = view[(slice(None), slice(None), *where)]
    grouped = taken.reshape(n, windows.groups, channels // windows.groups, len(positions), -1)
    columns = grouped.transpose(1, 0, 3, 2, 4).reshape(windows.groups, n * len(positions), -1)
    return np.ascontiguousarray(columns, dtype=np.float32)


def conv_outputs(values: Float32, groups: int, positions: Positions = None) -> Float32:
    """Bring a convolution's output into the order of its columns.

    Parameters
    ----------
    values : output [n, O, *spatial]
    groups : number of groups G
    positions : output positions to take from every image, as row-major indices; None takes all

    Returns
    -------
    float32 array [G, p, O/G]
        p = n · (number of positions), image by image.
    """
    n, channels = values.shape[:2]
    flat = values.reshape(n, groups, channels // groups, -1)
    if positions is not None:
        flat = flat.take(positions, axis=-1)
    return np.ascontiguousarray(flat.transpose(1, 0, 3, 2).reshape(groups, -1, channels // groups))


def matrix_columns(values: Float32, positions: Positions = None) -> Float32:
    """Reshape the input or output of a matrix product to columns.

    Parameters
    ----------
    values : input [n, ..., K] or output [n, ..., N]
    positions : positions to take from every image, as row-major indices; None takes all

    Returns
    -------
    float32 array [1, p, K] or [1, p, N]
        p = n · (number of positions), image by image.
    """
    flat = values.reshape(len(values), -1, values.shape[-1])
    if positions is not None:
        flat = flat[:, positions]
    return np.ascontiguousarray(flat.reshape(1, -1, values.shape[-1]))


def to_rows(weight: npt.NDArray[T], axis: int, groups: int) -> npt.NDArray[T]:
    """Reshape a weight to rows.

    Parameters
    ----------
    weight : weight of any shape
    axis : output-channel axis
    groups : number of groups G

    Returns
    -------
    array [G, R, d]
        A view where possible.
    """
    return np.moveaxis(weight, axis, 0).reshape(groups, weight.shape[axis] // groups, -1)


def from_rows(rows: npt.NDArray[np.generic], shape: Sequence[int], axis: int) -> npt.NDArray[np.generic]:
    """Reshape rows back to a weight; the inverse of `to_rows`.

    Parameters
    ----------
    rows : rows [G, R, d]
    shape : shape of the weight
    axis : output-channel axis of the weight

    Returns
    -------
    array of shape `shape`
    """
    others = [size for index, size in enumerate(shape) if index != axis]
    return np.ascontiguousarray(np.moveaxis(rows.reshape(shape[axis], *others), 0, axis))
