"""Rounding that lets later weights make up for the errors of earlier ones (GPTQ, arXiv 2210.17323)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
    groups, rows, width = weight.shape
    order, upper = factor.order, factor.upper
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
