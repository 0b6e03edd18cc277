"""Coordinate descent: improve the codes and scales of a rounded layer one at a time until no single change helps.

GPTQ rounds each column once and never revisits it. Coordinate descent revisits every code: with all other codes fixed,
the best value of one code has a closed form, so no step increases the error (w − sq)ᵀH(w − sq). Before each sweep, the
scale of each row is set to its best value for the current codes, s = qᵀHw / qᵀHq.
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
"""Maximum number of sweeps over all codes; most rows converge after a few."""


def descend(weight: Array, hessian: Array, codes: Array, levels: Levels) -> tuple[Array, Levels]:
    """Improve codes and scales.

    Parameters
    ----------
    weight : real-valued weights to approximate, [G, R, d]
    hessian : H [G, d, d], positive definite
    codes : initial codes in steps, [G, R, d]
    levels : levels of the rows [G, R]

    Returns
    -------
    codes : float64 array [G, R, d]
        Improved codes in steps.
    levels : Levels
        Improved scales; no row's error increases.
    """
    codes, scales = codes.copy(), levels.scales.copy()
    product = codes @ hessian
    _descend(weight @ hessian, hessian, codes, product, scales, levels.lowest, float(levels.count - 1))
    return codes, replace(levels, scales=scales)


@compiled_parallel
def _descend(
    target: Array, hessian: Array, codes: Array, product: Array, scales: Array, lowest: Array, last: float
) -> None:
    """Improve `codes` [G, R, d] and `scales` [G, R] in place; `target` is wH and `product` is qH, both [G, R, d]."""
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
