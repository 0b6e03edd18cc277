"""Codes and scales of a rounded layer, improved one at a time until no single change helps.

GPTQ rounds each column once and never comes back to it. Coordinate descent does: with all codes but one held, the best
value of that one is known in closed form, and no step can make the error (w − sq)ᵀH(w − sq) larger. Between two rounds
the scale of each row is set to its best value for the codes found, s = qᵀHw / qᵀHq.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from numba import prange

from infoq_onnx.jit import compiled_parallel
from infoq_onnx.quantize.levels import Levels

Array = npt.NDArray[np.float64]

SWEEPS = 20
"""At most so many visits of every code; most rows come to rest after a few."""


def descend(weight: Array, hessian: Array, codes: Array, levels: Levels) -> tuple[Array, Levels]:
    """Improve codes and scales.

    Parameters
    ----------
    weight : what the codes stand for, [G, R, d]
    hessian : [G, d, d], positive definite
    codes : to begin with, in steps, [G, R, d]
    levels : of the rows [G, R]

    Returns
    -------
    codes, levels
        With other scales, and an error that is nowhere larger.
    """
    codes, scales = codes.copy(), levels.scales.copy()
    product = codes @ hessian
    _descend(weight @ hessian, hessian, codes, product, scales, levels.lowest, float(levels.count - 1))
    return codes, replace(levels, scales=scales)


@compiled_parallel
def _descend(
    target: Array, hessian: Array, codes: Array, product: Array, scales: Array, lowest: Array, last: float
) -> None:
    """Improve `codes` [G, R, d] and `scales` [G, R] in place; `target` is wH [G, R, d], and `product` qH [G, R, d]."""
    groups, rows, width = codes.shape
    for row in prange(groups * rows):
        g, r = row // rows, row % rows
        goal, code, made, low = target[g, r], codes[g, r], product[g, r], lowest[g, r]
        for _ in range(SWEEPS):
            # wᵀHq and qᵀHq
            cross, square = 0.0, 0.0
            for j in range(width):
                cross += goal[j] * code[j]
                square += made[j] * code[j]
            if cross > 0.0 and square > 0.0:
                scales[g, r] = cross / square
            scale = scales[g, r]
            changed = False
            for j in range(width):
                best = code[j] + (goal[j] / scale - made[j]) / hessian[g, j, j]
                step = min(max(np.rint(best - low), 0.0), last) + low - code[j]
                if step != 0.0:
                    code[j] += step
                    changed = True
                    for i in range(width):
                        made[i] += step * hessian[g, j, i]
            if not changed:
                break
