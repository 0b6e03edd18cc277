"""Rounding in which later weights compensate for the rounding errors of earlier ones (GPTQ, arXiv 2210.17323)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import prange

from infoq_onnx.jit import compiled_parallel
from infoq_onnx.quantize.levels import Levels

Array = npt.NDArray[np.float64]

_BLOCK = 128
"""Number of columns rounded before their errors are spread over all later columns."""


@dataclass(frozen=True)
class Factor:
    """The factorization of H that GPTQ uses; it does not depend on the levels."""

    order: npt.NDArray[np.int64]
    """Columns in rounding order, [G, d]: by descending diagonal entry of H."""
    upper: Array
    """U [G, d, d], upper triangular, with H⁻¹ = UᵀU; rows and columns in rounding order."""


def factorize(hessian: Array) -> Factor:
    """Factorize the inverse of a positive definite H [G, d, d]."""
    order = np.argsort(-np.einsum("gii->gi", hessian), axis=1, kind="stable")
    sorted_hessian = np.take_along_axis(np.take_along_axis(hessian, order[:, :, None], 1), order[:, None, :], 2)
    # the Cholesky factor of the inverse, transposed
    return Factor(order, np.linalg.cholesky(np.linalg.inv(sorted_hessian)).transpose(0, 2, 1))


def round_block(left: Array, upper: Array, levels: Levels) -> tuple[Array, Array]:
    """Round a block of consecutive columns.

    Parameters
    ----------
    left : the columns' weights, corrected for the errors of earlier columns, [G, R, b]
    upper : the diagonal block of U for these columns, [G, b, b]
    levels : levels of the rows [G, R]

    Returns
    -------
    codes, errors : array [G, R, b]
        Codes in steps. Errors divided by the diagonal of U, to be spread over later columns.
    """
    kept, factor = np.array(left, order="C"), np.ascontiguousarray(upper)
    found: tuple[Array, Array] = _round_block(kept, factor, levels.scales, levels.lowest, float(levels.count - 1))
    return found


@compiled_parallel
def _round_block(left: Array, upper: Array, scales: Array, lowest: Array, last: float) -> tuple[Array, Array]:
    """Compiled part of `round_block`; modifies `left`."""
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
    """Round weights column by column, with error compensation.

    The error of each column is spread over the columns not yet rounded:
    W_{:,j:} −= (w_j − q_j)/U_jj · U_{j,j:}.

    Parameters
    ----------
    weight : weights [G, R, d]
    factor : factorization of H [G, d, d]
    levels : levels of the rows [G, R]

    Returns
    -------
    float64 array [G, R, d]
        Codes in steps.
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
