"""Rounding that lets later weights make up for the errors of earlier ones, and the least-squares fit before it.

Where a layer has a bias everything is centred: the bias is set last and absorbs every mean, so means must not steer the
rounding. (Without a bias, means are kept.) With the centred second moment H = E[(x − x̄)(x − x̄)ᵀ] of a layer's
*quantized* input x and the centred cross moment K = E[(t − t̄)(x − x̄)ᵀ] of its target t with it:

1. fit        W' = (K + λW)(H + λI)⁻¹          what the weights would be if they could be real numbers
2. round      GPTQ (arXiv 2210.17323): column by column, the error of a column is spread over those not yet rounded,
              W_{:,j:} −= (w_j − q_j)/U_jj · U_{j,j:} with H⁻¹ = UᵀU
3. rescale    s = qᵀHw' / qᵀHq                 the best scale of each row for the codes found
4. bias       b = t̄ − W_q x̄

λ is a share of the mean of H's diagonal. The target is the float network's output, so that each layer mends what the
layers before it have lost; where the layer ends a residual branch, it is the float network's sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infoq_onnx.quantize.grid import weight_code_limits
from infoq_onnx.quantize.weights import usable_scales

Array = npt.NDArray[np.float64]

_BLOCK = 128
_FRACTIONS = np.linspace(0.05, 1.0, 77)
"""Clipping points tried, as a share of the largest magnitude in the row."""


class Moments:
    """First and second moments of a layer's inputs x and targets t, summed in float64 as batches stream by.

    What is summed is the distance from the first batch's means. A variance found as the difference of two large sums
    would drown in their rounding, and a constant would seem to vary.

    Parameters
    ----------
    groups, width, rows : G, d and R of `quantize.columns`
    """

    def __init__(self, groups: int, width: int, rows: int) -> None:
        self.count = 0
        self._x_origin = np.zeros((groups, width), dtype=np.float32)
        self._t_origin = np.zeros((groups, rows), dtype=np.float32)
        self._x = np.zeros((groups, width))
        self._t = np.zeros((groups, rows))
        self._xx = np.zeros((groups, width, width))
        self._tx = np.zeros((groups, rows, width))

    def add(self, columns: npt.NDArray[np.float32], targets: npt.NDArray[np.float32]) -> None:
        """Add a batch: columns [G, p, d] and targets [G, p, R]."""
        if self.count == 0:
            self._x_origin = columns.mean(axis=1, dtype=np.float64).astype(np.float32)
            self._t_origin = targets.mean(axis=1, dtype=np.float64).astype(np.float32)
        self.count += columns.shape[1]
        from_x, from_t = columns - self._x_origin[:, None], targets - self._t_origin[:, None]
        self._x += from_x.sum(axis=1, dtype=np.float64)
        self._t += from_t.sum(axis=1, dtype=np.float64)
        # products of one batch in float32, at the speed of the machine; batches are summed in float64
        for group, (x, t) in enumerate(zip(from_x, from_t, strict=True)):
            self._xx[group] += x.T @ x
            self._tx[group] += t.T @ x

    @property
    def input_mean(self) -> Array:
        """x̄ [G, d]."""
        mean: Array = self._x_origin + self._x / self.count
        return mean

    @property
    def target_mean(self) -> Array:
        """t̄ [G, R]."""
        mean: Array = self._t_origin + self._t / self.count
        return mean

    def second(self, *, centred: bool) -> tuple[Array, Array]:
        """H [G, d, d] and K [G, R, d]; about the means, or about 0."""
        x, t = self._x / self.count, self._t / self.count
        second: Array = self._xx / self.count - _outer(x, x)
        cross: Array = self._tx / self.count - _outer(t, x)
        if centred:
            return second, cross
        return second + _outer(self.input_mean, self.input_mean), cross + _outer(self.target_mean, self.input_mean)


@dataclass(frozen=True)
class Rounded:
    """A rounded layer."""

    codes: npt.NDArray[np.int8]
    """[G, R, d]"""
    scales: npt.NDArray[np.float32]
    """[G, R]"""
    bias: Array | None
    """[G, R], real-valued; None for a layer without."""


def round_layer(weight: Array, moments: Moments, bits: int, *, has_bias: bool, damping: float = 0.01) -> Rounded:
    """Fit, round and rescale a layer, and set its bias.

    Parameters
    ----------
    weight : float weights [G, R, d]
    moments : of its quantized input and its target
    bits : 2 … 8
    has_bias : whether there is a bias to be set
    damping : λ as a share of the mean diagonal of H
    """
    second, cross = moments.second(centred=has_bias)
    width = second.shape[-1]
    strength: Array = damping * np.trace(second, axis1=1, axis2=2) / width
    # an input that never varies says nothing about its weight: keep the weight, and keep H invertible
    strength = np.where(strength > 0, strength, 1.0)
    damped = second + strength[:, None, None] * np.eye(width)
    wanted: Array = cross + strength[:, None, None] * weight
    solved = np.linalg.solve(damped, wanted.transpose(0, 2, 1))
    fitted = np.asarray(solved.transpose(0, 2, 1), dtype=np.float64)
    importance: Array = np.einsum("gii->gi", damped)
    scales = search_scales(fitted, importance, bits)
    codes = gptq(fitted, damped, scales, bits)
    scales = usable_scales(_rescaled(fitted, damped, codes, scales))
    bias: Array | None = None
    if has_bias:
        bias = moments.target_mean - np.einsum("grd,gd->gr", codes * scales[:, :, None], moments.input_mean)
    return Rounded(codes.astype(np.int8), scales.astype(np.float32), bias)


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


def _rescaled(weight: Array, hessian: Array, codes: Array, scales: Array) -> Array:
    """Scales [G, R] that minimise (w − s·q)ᵀH(w − s·q) for given codes; kept where that is not a positive number."""
    product = codes @ hessian
    cross, square = np.sum(product * weight, axis=2), np.sum(product * codes, axis=2)
    best = np.divide(cross, square, out=np.zeros_like(cross), where=square > 0)
    return np.where(best > 0, best, scales)


def _outer(left: Array, right: Array) -> Array:
    """Products [G, m, n] of all pairs of [G, m] and [G, n]."""
    return left[:, :, None] * right[:, None, :]
