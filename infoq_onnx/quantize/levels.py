"""Which values a row of weights may take: 2^b levels, evenly spaced, as many of them above 0 as suits the row.

    value = scale · (lowest + k),   k = 0 … count − 1,   lowest a multiple of ½

A two's-complement grid has one level more below 0 than above it, and spends one on 0 itself. With two bits that costs
a normal row a quarter more squared error than levels at ±½ and ±1½ steps, and a row whose weights are of one sign half
of its levels. So at few bits `lowest` is searched with the scale, in half steps. Integer kernels see nothing of it:
twice the code is an integer that fits a byte, and half the scale goes with it.
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
"""Up to this width `lowest` is searched. Half steps of more bits would need more than the 7 bits of a code that x86
processors without VNNI multiply exactly, and of so many levels one more or less makes no difference that shows."""
_FRACTIONS = np.linspace(0.05, 1.0, 77)
"""Clipping points tried, as a share of the largest magnitude in the row."""
_POLISH_STEPS = 8
_CHUNK = 2**23
"""Weights that are looked at at once."""
_SEARCHED = 4608
"""Of a row with more weights so many, about, say which levels are worth trying on all …"""
_CLEARLY = 1.1
"""… which those are not whose error there is so many times the least."""


@dataclass(frozen=True)
class Levels:
    """The levels of rows [G, R]."""

    scales: Array
    """[G, R]"""
    lowest: Array
    """[G, R], in steps"""
    count: int


def search_levels(weight: npt.NDArray[np.floating], importance: Array, bits: int, *, shifted: bool) -> Levels:
    """Levels with the least squared error of nearest codes.

    For a row w and its codes q(s) the error Σ h (w − s·q(s))² is piecewise quadratic in the scale s with many minima,
    so it is searched among candidates first, then polished: with the codes held, the best scale is
    s = Σ h w q / Σ h q², which can only lower the error, and rounding again can only lower it again.

    Parameters
    ----------
    weight : [G, R, d]
    importance : h, what the squared error of each column is weighted by, [G, d]
    bits : 2 … 8
    shifted : whether to search `lowest` too; otherwise levels are those of `weight_code_limits`

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
    """Mend the scales of dead and nearly dead channels of one layer, those of dead ones being 0.

    The bias of a channel is an int32 in units of its scale, and would overflow if that were too small. A dead channel
    gets the largest scale of the others (1 when all are dead).
    """
    largest = float(scales.max(initial=0.0)) or 1.0
    return np.where(scales > 0, np.maximum(scales, largest * 2.0**-16), largest)


@compiled
def _scale_at(largest: float, low: float, count: float, fraction: float) -> float:
    """Scale at which a share of the largest magnitude is the last level."""
    # that which the largest weight lies at, if it is on the side with fewer levels; half of the levels at least
    return fraction * largest / max(min(low + count - 1.0, -low), 0.5 * count - 1.0)


@compiled
def _error(row: Array, weighted: Array, scale: float, low: float, count: float, every: int, enough: float) -> float:
    """Σ h (w − s·q)² over every so many weights of a row, or over fewer once it reaches `enough`."""
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
    """Best scale and lowest level of each row of [G, R, d]; 0 and the usual one for a row of zeros.

    `every` so many of a row's weights say which levels to try on all of them.
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
        # what a sample of the row thinks much worse than the best is not tried on all of it
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
