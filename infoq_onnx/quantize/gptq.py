"""Rounding that lets later weights make up for the errors of earlier ones (GPTQ, arXiv 2210.17323)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infoq_onnx.quantize.levels import Levels

Array = npt.NDArray[np.float64]

_BLOCK = 128


def gptq(weight: Array, hessian: Array, levels: Levels) -> Array:
    """Codes [G, R, d], in steps, by error-compensating rounding, columns in the order of falling diagonal of H.

    Column by column, the error of a column is spread over those not yet rounded,
    W_{:,j:} −= (w_j − q_j)/U_jj · U_{j,j:} with H⁻¹ = UᵀU.

    Parameters
    ----------
    weight : [G, R, d]
    hessian : [G, d, d], positive definite
    levels : of the rows [G, R]
    """
    groups, rows, width = weight.shape
    order = np.argsort(-np.einsum("gii->gi", hessian), axis=1, kind="stable")
    sorted_hessian = np.take_along_axis(np.take_along_axis(hessian, order[:, :, None], 1), order[:, None, :], 2)
    # H⁻¹ = UᵀU with U upper triangular: the Cholesky factor of the inverse, transposed
    upper = np.linalg.cholesky(np.linalg.inv(sorted_hessian)).transpose(0, 2, 1)
    left = np.take_along_axis(weight, order[:, None, :], 2)
    codes = np.empty_like(left)
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        errors = np.empty((groups, rows, stop - start))
        for column in range(start, stop):
            value = left[:, :, column]
            codes[:, :, column] = levels.nearest(value)
            error = (value - codes[:, :, column] * levels.scales) / upper[:, column, column, None]
            left[:, :, column:stop] -= error[:, :, None] * upper[:, None, column, column:stop]
            errors[:, :, column - start] = error
        left[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    result = np.empty_like(codes)
    np.put_along_axis(result, np.broadcast_to(order[:, None, :], codes.shape), codes, 2)
    return result
