"""Mutual information of two continuous variables: the first estimator of Kraskov, Stögbauer and Grassberger (KSG-1).

A. Kraskov, H. Stögbauer, P. Grassberger, "Estimating mutual information", Phys. Rev. E 69, 066138 (2004), Eq. 8::

    I(X; Y) = ψ(k) + ψ(n) − ⟨ψ(n_x + 1) + ψ(n_y + 1)⟩

ε_i is the max-norm distance in (x, y) from sample i to its k-th neighbour. n_x(i) is the number of other samples with
|x_j − x_i| < ε_i; n_y(i) is defined in the same way.

Estimates can be negative. Clamping each estimate at 0 would bias every mean over projections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import digamma

from infoq_onnx.sensitivity.estimators._kernels import FloatArray, IntArray, ksg_kernel

# Points per strip, as a multiple of √n. For n = 1000 … 20000, values from 1 to 3 are fastest and equally fast.
_STRIP = 2.0

# A column whose spread is below this share of its magnitude is rounding noise around a constant. Also the jitter size.
_RESOLUTION = 1e-10


@dataclass(frozen=True, eq=False)
class Prepared:
    """The x side of projection pairs, sorted once and used with many y sides."""

    values: FloatArray
    """[m, n]: one row per projection, ascending along each row."""
    ranks: IntArray
    """[m, n]: position of each sample's value in its row of `values`."""


def standardize(X: ArrayLike) -> FloatArray:
    """Shift and scale each column to mean 0 and variance 1.

    Parameters
    ----------
    X : array_like, [n] or [n, m]

    Returns
    -------
    ndarray of float64, the shape of `X`
        A column that varies by less than 1e-10 of its magnitude is rounding noise around a constant and becomes 0.

    Raises
    ------
    ValueError
        `X` is empty or has values that are not finite.
    """
    X = _finite(X)
    magnitude = np.abs(X).max(axis=0)
    centred = X - X.mean(axis=0)
    deviation = np.sqrt(np.mean(centred**2, axis=0))
    varies = deviation > _RESOLUTION * magnitude
    result: FloatArray = np.where(varies, centred / np.where(varies, deviation, 1.0), 0.0)
    return result


def jitter(X: ArrayLike, seed: int | np.random.SeedSequence) -> FloatArray:
    """Add Gaussian noise of standard deviation 1e-10 to standardized columns, to break ties.

    The two sides of a pair need different seeds. Equal noise on both sides would correlate their ties.

    Parameters
    ----------
    X : array_like, [n] or [n, m]
    seed : int or SeedSequence
        The same seed and shape give the same noise.

    Returns
    -------
    ndarray of float64, the shape of `X`
        Constant columns stay unchanged: they carry no information, and noise would hide that.
    """
    X = np.asarray(X, dtype=np.float64)
    noise = np.random.default_rng(seed).standard_normal(X.shape)
    result: FloatArray = X + _RESOLUTION * noise * (np.ptp(X, axis=0) > 0)
    return result


def prepare(X: ArrayLike) -> Prepared:
    """Sort the x side of projection pairs.

    Parameters
    ----------
    X : array_like, [n, m]
        `X[i, j]` is sample i under projection j.

    Returns
    -------
    Prepared

    Raises
    ------
    ValueError
        `X` is not two-dimensional, is empty, or has values that are not finite.
    """
    rows = as_rows(X)
    order = np.argsort(rows, axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(rows.shape[1])[np.newaxis], axis=1)
    return Prepared(values=np.take_along_axis(rows, order, axis=1), ranks=ranks)


def ksg_prepared(x: Prepared, Y: ArrayLike, k: int = 3) -> FloatArray:
    """Compute KSG-1 of every projection pair from a sorted x side.

    The estimate of each pair equals scikit-learn's `_compute_mi_cc`, except that it is not clamped at 0. The worst-case
    complexity is O(n^1.5) per pair. The result does not depend on the number of threads.

    Parameters
    ----------
    x : Prepared
        The x side, [m, n].
    Y : array_like, [n, m]
        Column j is paired with row j of `x`. The function neither standardizes nor jitters the two sides.
    k : int
        Number of neighbours.

    Returns
    -------
    ndarray of float64, [m]
        Estimates in nats, possibly negative; exactly 0 where either side is constant.

    Raises
    ------
    ValueError
        The shapes differ, a value is not finite, `k` < 1, or there are no more than `k` samples.
    """
    rows = as_rows(Y)
    m, n = rows.shape
    if x.values.shape != rows.shape:
        raise ValueError(f"x has {x.values.shape[::-1]} samples and projections, y has {(n, m)}: they must be paired")
    if not 1 <= k < n:
        raise ValueError(f"{n} samples do not have {k} neighbours each: k must be at least 1 and below the samples")
    width = max(1, round(_STRIP * n**0.5))
    return ksg_kernel(x.values, x.ranks, rows, np.argsort(rows, axis=1), k, digamma_table(n), width)


def ksg_batch(X: ArrayLike, Y: ArrayLike, k: int = 3) -> FloatArray:
    """Compute KSG-1 of each column of `X` [n, m] and the same column of `Y` [n, m], in nats. See `ksg_prepared`."""
    return ksg_prepared(prepare(X), Y, k)


def ksg(x: ArrayLike, y: ArrayLike, k: int = 3) -> float:
    """Compute KSG-1 of `x` [n] and `y` [n], in nats. See `ksg_prepared`."""
    return float(ksg_batch(np.asarray(x)[:, np.newaxis], np.asarray(y)[:, np.newaxis], k)[0])


def as_rows(X: ArrayLike) -> FloatArray:
    """Transpose finite values [n, m] into contiguous float64 rows [m, n].

    Raises
    ------
    ValueError
        `X` is not two-dimensional, is empty, or has values that are not finite.
    """
    X = _finite(X)
    if X.ndim != 2:
        raise ValueError(f"expected samples × projections, found an array of shape {X.shape}")
    return np.ascontiguousarray(X.T)


def digamma_table(n: int) -> FloatArray:
    """Return ψ(0) … ψ(n), indexed by the argument. ψ(0) is a pole and is never looked up."""
    return digamma(np.arange(n + 1, dtype=np.float64))


def _finite(X: ArrayLike) -> FloatArray:
    X = np.asarray(X, dtype=np.float64)
    if X.size == 0:
        raise ValueError(f"no samples: found an array of shape {X.shape}")
    if not np.isfinite(X).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(X))} of {X.size} values are not finite")
    return X
