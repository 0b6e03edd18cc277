"""Mutual information of a continuous and a discrete variable, after Ross.

B. C. Ross, "Mutual information between discrete and continuous data sets", PLoS ONE 9(2), e87357 (2014), Eq. 2::

    I(X; L) = ψ(n) + ⟨ψ(k_i)⟩ − ⟨ψ(N_i)⟩ − ⟨ψ(m_i)⟩

N_i is the number of samples in sample i's class, and k_i = min(k, N_i − 1). d_i is the distance from sample i to its
k_i-th neighbour in its class. m_i is the number of samples of any class within d_i, including the k_i-th neighbour but
not sample i.

Samples that are alone in their class have no neighbours and do not count in n. Estimates can be negative.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from infoq_onnx.sensitivity.estimators._kernels import FloatArray, ross_kernel
from infoq_onnx.sensitivity.estimators.ksg import as_rows, digamma_table


def ross_batch(X: ArrayLike, labels: ArrayLike, k: int = 3) -> FloatArray:
    """Compute Ross's estimate of every column of `X` and the same labels.

    The estimate of each column equals scikit-learn's `_compute_mi_cd`, except that it is not clamped at 0. The
    complexity is O(n log n) per column. The result does not depend on the number of threads.

    Parameters
    ----------
    X : array_like, [n, m]
        `X[i, j]` is sample i under projection j. The function neither standardizes nor jitters `X`.
    labels : array_like, [n]
        Class of each sample, of any sortable type.
    k : int
        Number of neighbours. A class of N ≤ `k` samples uses N − 1.

    Returns
    -------
    ndarray of float64, [m]
        Estimates in nats, possibly negative; exactly 0 where a column is constant.

    Raises
    ------
    ValueError
        The lengths differ, a value is not finite, `k` < 1, or no class has two samples.
    """
    rows = as_rows(X)
    labels = np.asarray(labels)
    if labels.shape != rows.shape[1:]:
        raise ValueError(f"expected one label for each of {rows.shape[1]} samples, found shape {labels.shape}")
    if k < 1:
        raise ValueError(f"k must be at least 1, found {k}")
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    kept = counts[codes] > 1
    if not kept.any():
        raise ValueError(f"{labels.size} samples of {labels.size} classes: at least one class needs two samples")

    _, codes, counts = np.unique(codes[kept], return_inverse=True, return_counts=True)
    rows = np.ascontiguousarray(rows[:, kept])
    n = rows.shape[1]
    order = np.argsort(rows, axis=1)
    values = np.take_along_axis(rows, order, axis=1)
    ks = np.minimum(k, counts - 1)
    psi = digamma_table(n)
    neighbours = ross_kernel(values, order, codes, np.append(0, np.cumsum(counts)), ks, psi)
    estimates = psi[n] + np.average(psi[ks] - psi[counts], weights=counts) - neighbours
    varies = values[:, 0] < values[:, -1]
    result: FloatArray = np.where(varies, estimates, 0.0)
    return result


def ross(x: ArrayLike, labels: ArrayLike, k: int = 3) -> float:
    """Compute Ross's estimate of `x` [n] and `labels` [n], in nats. See `ross_batch`."""
    return float(ross_batch(np.asarray(x)[:, np.newaxis], labels, k)[0])
