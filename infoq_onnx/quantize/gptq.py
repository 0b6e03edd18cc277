"""Rounding that lets later weights make up for the errors of earlier ones (GPTQ, arXiv 2210.17323)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import prange

from infoq_onnx.jit import compiled_parallel
from infoq_onnx.quantize.levels import Levels

Array = npt.NDArray[np.float64]

_BLOCK = 128


@dataclass(frozen=True)
class Factor:
    """What GPTQ needs to know of H, whatever the levels are."""

    order: npt.NDArray[np.int64]
    """Columns in the order they are rounded, [G, d]: that of a falling diagonal of H."""
    upper: Array
    """U [G, d, d], upper triangular, with H⁻¹ = UᵀU in that order."""


def factorize(hessian: Array) -> Factor:
    """Factorize the inverse of H [G, d, d], which is positive definite."""
    order = np.argsort(-np.einsum("gii->gi", hessian), axis=1, kind="stable")
    sorted_hessian = np.take_along_axis(np.take_along_axis(hessian, order[:, :, None], 1), order[:, None, :], 2)
    # the Cholesky factor of the inverse, transposed
    return Factor(order, np.linalg.cholesky(np.linalg.inv(sorted_hessian)).transpose(0, 2, 1))


def round_block(left: Array, upper: Array, levels: Levels) -> tuple[Array, Array]:
    """Round columns that follow one another.

    Parameters
    ----------
    left : what is left of them to be rounded, [G, R, b]
    upper : their part of U, [G, b, b]
    levels : of the rows [G, R]

    Returns
    -------
    codes, errors : array [G, R, b]
        Codes in steps; errors as shares of U's diagonal, to be spread on later columns.
    """
    kept, factor = np.array(left, order="C"), np.ascontiguousarray(upper)
    found: tuple[Array, Array] = _round_block(kept, factor, levels.scales, levels.lowest, float(levels.count - 1))
    return found


@compiled_parallel
def _round_block(left: Array, upper: Array, scales: Array, lowest: Array, last: float) -> tuple[Array, Array]:
    """See `round_block`; `left` is changed."""
    groups, rows, width = left.shape
    codes, errors = np.empty_like(left), np.empty_like(left)
    for index in prange(groups * rows):
        g, r = index // rows, index % rows
        row, scale, low = left[g, r], scales[g, r], lowest[g, r]
        for column in range(width):
            code = min(max(np.rint(row[column] / scale - low), 0.0), last) + low
            error = (row[column] - code * scale) / upper[g, column, column]
            codes[g, r, column], errors[g, r, column] = code, error
            for later in range(column + 1, width):
                row[later] -= error * upper[g, column, later]
    return codes, errors


def gptq(weight: Array, factor: Factor, levels: Levels) -> Array:
    """Codes [G, R, d], in steps, by error-compensating rounding.

    Column by column, the error of a column is spread over those not yet rounded,
    W_{:,j:} −= (w_j − q_j)/U_jj · U_{j,j:}.

    Parameters
    ----------
    weight : [G, R, d]
    factor : of H [G, d, d]
    levels : of the rows [G, R]
    """
    width = weight.shape[2]
    order, upper = factor.order, factor.upper
    left = np.take_along_axis(weight, order[:, None, :], 2)
    codes = np.empty_like(left)
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        block = slice(start, stop)
        codes[:, :, block], errors = round_block(left[:, :, block], upper[:, block, block], levels)
        left[:, :, stop:] -= errors @ upper[:, block, stop:]
    result = np.empty_like(codes)
    np.put_along_axis(result, np.broadcast_to(order[:, None, :], codes.shape), codes, 2)
    return result
