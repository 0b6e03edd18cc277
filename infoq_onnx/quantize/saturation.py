"""16-bit saturation in the integer kernels of x86 processors without VNNI.

These processors multiply unsigned activations by signed weights in pairs and add each pair in 16 bits with saturation
(vpmaddubsw):

    sat16(a₀·w₀ + a₁·w₁) + sat16(a₂·w₂ + a₃·w₃) + …,   0 ≤ a ≤ A

With A = 255, a pair is exact for all activations if the positive codes among w₀ and w₁ sum to at most 128 and the
negative ones to at least −128. 7-bit weights always satisfy this (64 + 64). With 7-bit activations (A = 127), all
weights are exact. Pairs are neighbours in the order in which a kernel reads a row: a matrix product reads its inputs in
order; a convolution reads one kernel position after the other, and at each position the input channels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.integer]

_LOWEST, _HIGHEST = -(1 << 15), (1 << 15) - 1
_CHUNK = 2**20
"""Number of codes processed at a time."""


def kernel_rows(codes: Codes, axis: int, *, convolution: bool) -> Codes:
    """Bring a weight into the order in which kernels read it.

    Parameters
    ----------
    codes : weight of a convolution [C, I, *kernel], or of a matrix product with one or more further axes
    axis : output-channel axis
    convolution : whether the weight belongs to a convolution

    Returns
    -------
    array [C, ..., d]
        A view where possible. Along the last axis, elements 0 and 1, 2 and 3 … form pairs.
    """
    rows = np.moveaxis(codes, axis, 0)
    if not convolution:
        return rows
    rows = np.moveaxis(rows, 1, -1)
    return rows.reshape(len(rows), -1)


def saturated_pairs(rows: Codes, largest: int = 255) -> npt.NDArray[np.bool_]:
    """Find the pairs whose sum of products may exceed 16 bits.

    Parameters
    ----------
    rows : weight codes [..., d], in the order of `kernel_rows`
    largest : A, the largest activation code

    Returns
    -------
    bool array [..., ⌈d/2⌉]
        True for each pair that may saturate.
    """
    first, second = _pairs(rows)
    above = np.maximum(first, 0) + np.maximum(second, 0) > _HIGHEST // largest
    below = np.minimum(first, 0) + np.minimum(second, 0) < -(-_LOWEST // largest)
    return np.asarray(above | below, dtype=np.bool_)


def any_saturated(rows: Codes, largest: int = 255) -> bool:
    """Return whether any pair may saturate.

    Rows are checked in chunks: most weights with saturating pairs have one in the first chunk.

    Parameters
    ----------
    rows : weight codes [C, ..., d], in the order of `kernel_rows`
    largest : A, the largest activation code

    Returns
    -------
    bool
    """
    step = max(1, _CHUNK * len(rows) // max(1, rows.size))
    return any(bool(saturated_pairs(rows[start : start + step], largest).any()) for start in range(0, len(rows), step))


def saturating_product(activations: Codes, rows: Codes) -> npt.NDArray[np.int64]:
    """Compute the matrix product as a processor without VNNI does.

    Parameters
    ----------
    activations : unsigned codes [p, d], in the order of `kernel_rows`
    rows : weight codes [C, d]

    Returns
    -------
    int64 array [p, C]
        Sums of products with 16-bit saturation of each pair.
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
    """Reduce the codes of pairs that may saturate until they fit 16 bits, the larger code first.

    It is meant for codes that exceed the limit by a step or two in a few places, because input-dependent rounding moved
    them beyond their nearest codes.

    Parameters
    ----------
    codes : weight codes; see `kernel_rows`
    axis : output-channel axis
    convolution : whether the weight belongs to a convolution

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
        # reduce the larger code until both are equal, then reduce both equally
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
    """Split [..., d] into the first and the second element of each pair, [..., ⌈d/2⌉]; pad an odd d with 0."""
    wide = rows.astype(np.int16)
    if wide.shape[-1] % 2:
        wide = np.concatenate([wide, np.zeros_like(wide[..., :1])], axis=-1)
    return wide[..., ::2], wide[..., 1::2]
