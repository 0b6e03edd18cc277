"""The levels of each row of weights: 2^b evenly spaced values whose offset from 0 is chosen per row.

    value = scale · (lowest + k),   k = 0 … count − 1,   lowest a multiple of ½

A two's-complement grid has one more level below 0 than above 0, and one level at 0. With two bits, a row of normally
distributed weights has a quarter more squared error on this grid than on levels at ±½ and ±1½ steps. A row whose
weights all have the same sign loses half of its levels. At few bits `lowest` is therefore searched together with the
scale, in half steps. Integer kernels are not affected: the doubled code is an integer that fits a byte, and the scale
is halved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import prange

from infoq_onnx.jit import compiled, compiled_parallel
from infoq_onnx.quantize.grid import weight_code_limits

Array = npt.NDArray[np.float64]

SHIFTED_BITS = 5
"""Largest bit-width at which `lowest` is searched. At more bits, half steps need codes of more than 7 bits, which x86
processors without VNNI do not multiply exactly. One level more or less also has no visible effect there."""
_FRACTIONS = np.linspace(0.05, 1.0, 77)
"""Clipping points to try, as a share of the largest magnitude in the row."""
_POLISH_STEPS = 8
_CHUNK = 2**23
"""Number of weights processed at a time."""
_SEARCHED = 4608
"""Longer rows are sampled down to about this many weights to preselect candidate levels …"""
_CLEARLY = 1.1
"""… and candidates whose sampled error exceeds the least one by this factor are skipped."""


@dataclass(frozen=True)
class Levels:
    """The levels of rows [G, R]."""

    scales: Array
    """Step size of each row, [G, R]."""
    lowest: Array
    """Lowest level of each row in steps, [G, R]."""
    count: int
    """Number of levels."""


def search_levels(weight: npt.NDArray[np.floating], importance: Array, bits: int, *, shifted: bool) -> Levels:
    """Find the levels on which nearest rounding has the least squared error.

    For a row w with codes q(s), the error Σ h (w − s·q(s))² is piecewise quadratic in the scale s and has many minima.
    The search therefore compares a fixed set of candidates first and then refines the best one: for fixed codes, the
    best scale is s = Σ h w q / Σ h q². Neither this update nor rounding again can increase the error.

    Parameters
    ----------
    weight : weights [G, R, d]
    importance : weight h of each column's squared error, [G, d]
    bits : bit-width, 2 … 8
    shifted : whether to search `lowest` too; otherwise the levels are those of `weight_code_limits`

    Returns
    -------
    Levels
        Scales are positive and finite; see `usable_scales`.
    """
    low, high = weight_code_limits(bits)
    count = high - low + 1
    lowest = np.arange(0.5 - count, 0.75, 0.5) if shifted else np.array([float(low)])
    scales, found = np.empty(weight.shape[:2]), np.empty(weight.shape[:2])
    every = -(-weight.shape[2] // _SEARCHED) if shifted else 1
    step = max(1, _CHUNK // max(1, weight.shape[0] * weight.shape[2]))
    for start in range(0, weight.shape[1], step):
        rows = slice(start, start + step)
        part = np.ascontiguousarray(weight[:, rows], dtype=np.float64)
        scales[:, rows], found[:, rows] = _search(
            part, np.ascontiguousarray(importance), _FRACTIONS, lowest, float(low), float(count), every
        )
    return Levels(usable_scales(scales), found, count)


def usable_scales(scales: Array) -> Array:
    """Replace the scales of dead and nearly dead channels of one layer.

    A channel's bias is an int32 in units of its scale and would overflow if the scale were too small. Scales are
    therefore raised to at least 2⁻¹⁶ of the largest one. A dead channel, whose weights are all 0, gets the largest
    scale.

    Parameters
    ----------
    scales : scales of any shape; 0 for dead channels

    Returns
    -------
    float64 array of the same shape
        All positive; 1 where all channels are dead.
    """
    largest = float(scales.max(initial=0.0)) or 1.0
    return np.where(scales > 0, np.maximum(scales, largest * 2.0**-16), largest)


@compiled
def _scale_at(largest: float, low: float, count: float, fraction: float) -> float:
    """Return the scale that puts the last level at `fraction` of the largest magnitude."""
    # the last level on the side of 0 with fewer levels; but at least half of all levels less one
    return fraction * largest / max(min(low + count - 1.0, -low), 0.5 * count - 1.0)


@compiled
def _error(row: Array, weighted: Array, scale: float, low: float, count: float, every: int, enough: float) -> float:
    """Return Σ h (w − s·q)² over every `every`-th weight of a row; stop early once the sum reaches `enough`."""
    error = 0.0
    for i in range(0, len(row), every):
        code = min(max(np.rint(row[i] / scale - low), 0.0), count - 1.0) + low
        error += weighted[i] * (row[i] - scale * code) ** 2
        if error >= enough:
            break
    return error


@compiled_parallel
def _search(
    weight: Array, importance: Array, fractions: Array, candidates: Array, usual: float, count: float, every: int
) -> tuple[Array, Array]:
    """Return the best scale and lowest level of each row of [G, R, d]; 0 and `usual` for a row of zeros.

    Every `every`-th weight of a row preselects the candidates that are evaluated on all weights of the row.
    """
    groups, rows, width = weight.shape
    scales = np.zeros((groups, rows))
    lowest = np.full((groups, rows), usual)
    for index in prange(groups * rows):
        g, r = index // rows, index % rows
        row, weighted = weight[g, r], importance[g]
        largest = 0.0
        for i in range(width):
            largest = max(largest, abs(row[i]))
        if largest == 0.0:
            continue
        # skip candidates that are clearly worse than the best on a sample of the row
        rough = np.zeros((len(candidates), len(fractions)))
        limit = np.inf
        if every > 1:
            for c in range(len(candidates)):
                for f in range(len(fractions)):
                    scale = _scale_at(largest, candidates[c], count, fractions[f])
                    rough[c, f] = _error(row, weighted, scale, candidates[c], count, every, limit)
                    limit = min(limit, _CLEARLY * rough[c, f])
        best, best_low, least = 0.0, usual, np.inf
        for c in range(len(candidates)):
            for f in range(len(fractions)):
                if rough[c, f] <= limit:
                    scale = _scale_at(largest, candidates[c], count, fractions[f])
                    error = _error(row, weighted, scale, candidates[c], count, 1, least)
                    if error < least:
                        best, best_low, least = scale, candidates[c], error
        for _ in range(_POLISH_STEPS):
            cross, square = 0.0, 0.0
            for i in range(width):
                code = min(max(np.rint(row[i] / best - best_low), 0.0), count - 1.0) + best_low
                cross += weighted[i] * row[i] * code
                square += weighted[i] * code * code
            if cross <= 0.0 or square == 0.0 or cross / square == best:
                break
            best = cross / square
        scales[g, r], lowest[g, r] = best, best_low
    return scales, lowest
