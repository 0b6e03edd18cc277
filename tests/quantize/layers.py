"""Layers as matrix products, for the tests of rounding: inputs, weights, and the errors of codes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infoq_onnx.quantize.levels import Levels, search_levels
from infoq_onnx.quantize.moments import Moments
from infoq_onnx.quantize.rounding import Rounded

Array = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]


def inputs(count: int, width: int, groups: int = 1, *, correlation: float = 0.0, seed: int = 0) -> Float32:
    """Columns [G, count, width]; neighbouring inputs have the given correlation."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((groups, count, width))
    for i in range(1, width):
        values[:, :, i] = correlation * values[:, :, i - 1] + np.sqrt(1 - correlation**2) * values[:, :, i]
    return values.astype(np.float32)


def normal(groups: int, rows: int, width: int, seed: int = 7) -> Array:
    return np.random.default_rng(seed).standard_normal((groups, rows, width))


def outputs(columns: Float32, weight: Array) -> Float32:
    """What weights [G, R, d] make of columns [G, p, d]: [G, p, R]."""
    return (columns @ weight.transpose(0, 2, 1)).astype(np.float32)


def moments_of(columns: Float32, targets: Float32, *, batches: int = 1, halved: bool = True) -> Moments:
    """Sum in several batches, the first half of each being one half of the images, as `gather` does."""
    moments = Moments(len(columns), columns.shape[2], targets.shape[2])
    for x, t in zip(np.array_split(columns, batches, 1), np.array_split(targets, batches, 1), strict=True):
        middle = x.shape[1] // 2 if halved else x.shape[1]
        moments.add(x[:, :middle], t[:, :middle], 0)
        moments.add(x[:, middle:], t[:, middle:], 1)
    return moments


def hessian_of(columns: Float32, damping: float = 0.01) -> Array:
    exact = columns.astype(np.float64)
    second: Array = exact.transpose(0, 2, 1) @ exact / columns.shape[1]
    width = second.shape[-1]
    damped: Array = second + damping * np.trace(second, axis1=1, axis2=2)[:, None, None] / width * np.eye(width)
    return damped


def diagonal(hessian: Array) -> Array:
    """Diagonals [G, d] of [G, d, d]."""
    return np.asarray(np.einsum("gii->gi", hessian), dtype=np.float64)


def quadratic(weight: Array, hessian: Array, codes: npt.NDArray[np.number], scales: npt.NDArray[np.floating]) -> Array:
    """(w − sq)ᵀH(w − sq) of each row [G, R]."""
    error = weight - codes * scales[:, :, None]
    return np.asarray(np.einsum("grd,gde,gre->gr", error, hessian, error), dtype=np.float64)


def levels_of(weight: Array, hessian: Array | None, bits: int, *, shifted: bool = True) -> Levels:
    """Levels for the diagonal of H; None weighs all columns alike."""
    groups, _, width = weight.shape
    importance = np.ones((groups, width)) if hessian is None else diagonal(hessian)
    return search_levels(weight, importance, bits, shifted=shifted)


def values(levels: Levels, g: int, r: int) -> Array:
    """Every code of one row, in steps."""
    return np.asarray(levels.lowest[g, r] + np.arange(levels.count), dtype=np.float64)


def nearest(weight: Array, levels: Levels) -> Array:
    """Nearest codes by trying them all, the even level of two that are as near."""
    codes = np.empty(weight.shape)
    for g, r, j in np.ndindex(weight.shape):
        every = values(levels, g, r)
        distance = np.abs(weight[g, r, j] / levels.scales[g, r] - every)
        near = np.flatnonzero(distance <= distance.min() + 1e-12)
        codes[g, r, j] = every[next((k for k in near if k % 2 == 0), near[0])]
    return codes


def values_of(rounded: Rounded) -> Array:
    return np.asarray(rounded.codes * rounded.scales[:, :, None].astype(np.float64), dtype=np.float64)
