"""Rounding that lets later weights make up for the errors of earlier ones (GPTQ, arXiv 2210.17323)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infoq_onnx.quantize.grid import weight_code_limits
from infoq_onnx.quantize.weights import usable_scales

Array = npt.NDArray[np.float64]

_BLOCK = 128
_FRACTIONS = np.linspace(0.05, 1.0, 77)
"""Clipping points tried, as a share of the largest magnitude in the row."""


def search_scales(weight: Array, importance: Array, bits: int) -> Array:
    """Scales [G, R] with the least squared error of nearest codes, each column weighted by `importance` [G, d]."""
    low, high = weight_code_limits(bits)
    largest = np.abs(weight).max(axis=2)
    live = largest > 0
    best = np.zeros(largest.shape)
    least = np.full(largest.shape, np.inf)
    for fraction in _FRACTIONS:
        scale = np.where(live, largest, 1.0) * fraction / high
        codes = np.clip(np.rint(weight / scale[:, :, None]), low, high)
        error = np.einsum("grd,gd->gr", (weight - codes * scale[:, :, None]) ** 2, importance)
        better = error < least
        best, least = np.where(better, scale, best), np.where(better, error, least)
    return usable_scales(np.where(live, best, 0.0))


def gptq(weight: Array, hessian: Array, scales: Array, bits: int) -> Array:
    """Codes [G, R, d] by error-compensating rounding, columns in the order of falling diagonal of H.

    Column by column, the error of a column is spread over those not yet rounded,
    W_{:,j:} −= (w_j − q_j)/U_jj · U_{j,j:} with H⁻¹ = UᵀU.

    Parameters
    ----------
    weight : [G, R, d]
    hessian : [G, d, d], positive definite
    scales : [G, R]
    bits : 2 … 8
    """
    low, high = weight_code_limits(bits)
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
            codes[:, :, column] = np.clip(np.rint(value / scales), low, high)
            error = (value - codes[:, :, column] * scales) / upper[:, column, column, None]
            left[:, :, column:stop] -= error[:, :, None] * upper[:, None, column, column:stop]
            errors[:, :, column - start] = error
        left[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    result = np.empty_like(codes)
    np.put_along_axis(result, np.broadcast_to(order[:, None, :], codes.shape), codes, 2)
    return result
