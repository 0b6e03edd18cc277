"""Where sums of 16 bits overflow: integer kernels of x86 processors without VNNI.

Such a processor multiplies unsigned activations with signed weights in pairs, and adds each pair in 16 bits, saturating
(vpmaddubsw):

    sat16(a₀·w₀ + a₁·w₁) + sat16(a₂·w₂ + a₃·w₃) + …,   0 ≤ a ≤ A

With A = 255 a pair is exact whatever the activations are if the positive codes among w₀ and w₁ sum to at most 128, and
the negative ones to at least −128. Weights of 7 bits always do (64 + 64). Activations of 7 bits (A = 127) make any
weights exact. Pairs are neighbours in the order in which a kernel reads a row: a matrix product its inputs, a
convolution one kernel position after the other, and at each position the input channels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.integer]

_LOWEST, _HIGHEST = -(1 << 15), (1 << 15) - 1
_CHUNK = 2**20
"""Codes that are looked at at once."""


def kernel_rows(codes: Codes, axis: int, *, convolution: bool) -> Codes:
    """Bring a weight into the order in which kernels read it.

    Parameters
    ----------
    codes : the weight of a convolution [C, I, *kernel], or of a matrix product, with one or more axes besides the
        output channels'
    axis : the output-channel axis
    convolution : which of the two it is

    Returns
    -------
    array [C, ..., d]
        A view where possible. Neighbours 0 and 1, 2 and 3 … along the last axis are pairs.
    """
    rows = np.moveaxis(codes, axis, 0)
    if not convolution:
        return rows
    rows = np.moveaxis(rows, 1, -1)
    return rows.reshape(len(rows), -1)


def saturated_pairs(rows: Codes, largest: int = 255) -> npt.NDArray[np.bool_]:
    """Find the pairs whose products may leave 16 bits.

    Parameters
    ----------
    rows : weight codes [..., d], in the order of `kernel_rows`
    largest : A, the largest activation code

    Returns
    -------
    bool array [..., ⌈d/2⌉]
    """
    first, second = _pairs(rows)
    above = np.maximum(first, 0) + np.maximum(second, 0) > _HIGHEST // largest
    below = np.minimum(first, 0) + np.minimum(second, 0) < -(-_LOWEST // largest)
    return np.asarray(above | below, dtype=np.bool_)


def any_saturated(rows: Codes, largest: int = 255) -> bool:
    """Whether `saturated_pairs` finds one, some rows at a time: most weights that have any have one in the first."""
    step = max(1, _CHUNK * len(rows) // max(1, rows.size))
    return any(bool(saturated_pairs(rows[start : start + step], largest).any()) for start in range(0, len(rows), step))


def saturating_product(activations: Codes, rows: Codes) -> npt.NDArray[np.int64]:
    """Multiply as a processor without VNNI does.

    Parameters
    ----------
    activations : unsigned codes [p, d], in the order of `kernel_rows`
    rows : weight codes [C, d]

    Returns
    -------
    int64 array [p, C]
    """
    sums = np.zeros((len(activations), len(rows)), dtype=np.int64)
    left, right = _pairs(activations), _pairs(rows)
    for pair in range(left[0].shape[-1]):
        products = [
            np.multiply.outer(a[:, pair].astype(np.int64), w[:, pair]) for a, w in zip(left, right, strict=True)
        ]
        sums += np.clip(products[0] + products[1], _LOWEST, _HIGHEST)
    return sums


def unsaturated(codes: npt.NDArray[np.int8], axis: int, *, convolution: bool) -> npt.NDArray[np.int8]:
    """Bring the pairs that may saturate back to what 16 bits hold, the larger code first.

    It is meant for codes that exceed it here and there by a step or two, as rounding to nearest would not.

    Parameters
    ----------
    codes : a weight; see `kernel_rows`
    axis, convolution : see `kernel_rows`

    Returns
    -------
    int8 array of the weight's shape
    """
    rows = kernel_rows(codes, axis, convolution=convolution)
    first, second = _pairs(rows)
    wanted = [first.copy(), second.copy()]
    for sign, room in ((1, _HIGHEST // 255), (-1, -_LOWEST // 255)):
        sizes = [np.maximum(sign * one, 0) for one in (first, second)]
        excess = np.maximum(sizes[0] + sizes[1] - room, 0)
        # the larger gives up what makes them equal, then both the same
        gap = np.minimum(np.abs(sizes[0] - sizes[1]), excess)
        rest = excess - gap
        larger = sizes[0] >= sizes[1]
        wanted[0] -= sign * (np.where(larger, gap, 0) + rest // 2)
        wanted[1] -= sign * (np.where(larger, 0, gap) + rest - rest // 2)
    joined = np.stack(wanted, axis=-1).reshape(*first.shape[:-1], -1)[..., : rows.shape[-1]].astype(np.int8)
    if convolution:
        moved = np.moveaxis(codes, axis, 0)
        moved = np.moveaxis(moved, 1, -1)
        joined = np.moveaxis(joined.reshape(moved.shape), -1, 1)
    return np.ascontiguousarray(np.moveaxis(joined, 0, axis))


def _pairs(rows: Codes) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """Split [..., d] into the first and the second of each pair, [..., ⌈d/2⌉]; a last one that is alone has a 0."""
    wide = rows.astype(np.int16)
    if wide.shape[-1] % 2:
        wide = np.concatenate([wide, np.zeros_like(wide[..., :1])], axis=-1)
    return wide[..., ::2], wide[..., 1::2]
