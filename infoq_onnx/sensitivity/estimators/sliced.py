"""Sliced mutual information: the mean mutual information over random one-dimensional projections.

Z. Goldfeld, K. Greenewald, "Sliced mutual information: a scalable measure of statistical dependence" (NeurIPS 2021)::

    SMI(U; V) = E over θ, φ of I(θᵀU; φᵀV),    θ, φ uniform on the unit spheres

A discrete variable is not projected, because a projection of its one-hot encoding separates the classes almost surely.

The seed alone determines directions and jitter. Estimates with the same seed therefore share both. Their difference
should be computed per projection (`paired_difference`), where the common noise cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from infoq_onnx.sensitivity.estimators._kernels import FloatArray
from infoq_onnx.sensitivity.estimators.ksg import Prepared, jitter, ksg_prepared, prepare, standardize
from infoq_onnx.sensitivity.estimators.ross import ross_batch


@dataclass(frozen=True, eq=False)
class Estimate:
    """An estimate of sliced mutual information, in nats."""

    value: float
    """Mean of `per_projection`; can be negative."""
    se: float
    """Standard error of `value` over the projections. It does not include the sampling error."""
    per_projection: FloatArray
    """Mutual information of each projection pair, [m]."""


def directions(dim: int, count: int, seed_sequence: np.random.SeedSequence) -> FloatArray:
    """Draw directions uniformly from the unit sphere.

    Parameters
    ----------
    dim : int
        Dimension of the space.
    count : int
        Number of directions.
    seed_sequence : SeedSequence
        Determines the directions.

    Returns
    -------
    ndarray of float64, [dim, count]
        Unit columns: g/‖g‖ with g ~ N(0, I).
    """
    gaussian = np.random.default_rng(seed_sequence).standard_normal((dim, count))
    gaussian /= np.linalg.norm(gaussian, axis=0)
    return gaussian


def sliced_mi(U: ArrayLike, V: ArrayLike, m: int = 128, k: int = 3, seed: int = 0) -> Estimate:
    """Estimate the sliced mutual information of two continuous variables.

    Parameters
    ----------
    U, V : array_like, [n, …]
        One sample per row; the other axes are flattened.
    m : int
        Number of projection pairs, at least 2.
    k : int
        Number of neighbours, as in `ksg`.
    seed : int
        Determines directions and jitter.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        The numbers of samples differ, a value is not finite, `m` < 2, `k` < 1, or there are no more than `k` samples.
    """
    theta, phi, _, _ = _streams(seed)
    return smi_from_projections(_project(U, m, theta), _project(V, m, phi), k, seed)


def sliced_mi_discrete(U: ArrayLike, labels: ArrayLike, m: int = 128, k: int = 3, seed: int = 0) -> Estimate:
    """Estimate the sliced mutual information of a continuous variable and class labels.

    Parameters
    ----------
    U : array_like, [n, …]
        One sample per row; the other axes are flattened.
    labels : array_like, [n]
        Class of each sample.
    m : int
        Number of projections, at least 2.
    k : int
        Number of neighbours, as in `ross`.
    seed : int
        Determines directions and jitter.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        The numbers of samples differ, a value is not finite, `m` < 2, `k` < 1, or no class has two samples.
    """
    theta, _, _, _ = _streams(seed)
    return smi_discrete_from_projections(_project(U, m, theta), labels, k, seed)


def prepare_projections(PU: ArrayLike, seed: int = 0) -> Prepared:
    """Standardize, jitter and sort the projected x side `PU` [n, m] for `smi_from_prepared`."""
    _, _, noise, _ = _streams(seed)
    return prepare(jitter(standardize(PU), noise))


def smi_from_prepared(PU: Prepared, PV: ArrayLike, k: int = 3, seed: int = 0) -> Estimate:
    """Estimate sliced mutual information from a prepared x side and a projected y side.

    Parameters
    ----------
    PU : Prepared
        The x side, from `prepare_projections`.
    PV : array_like, [n, m]
        The projected y side.
    k : int
        Number of neighbours.
    seed : int
        The seed that `PU` was prepared with, so that the two sides get independent jitter.

    Returns
    -------
    Estimate
    """
    _, _, _, noise = _streams(seed)
    return _summary(ksg_prepared(PU, jitter(standardize(PV), noise), k))


def smi_from_projections(PU: ArrayLike, PV: ArrayLike, k: int = 3, seed: int = 0) -> Estimate:
    """Estimate sliced mutual information from projections of both sides.

    Parameters
    ----------
    PU, PV : array_like, [n, m]
        Column j of both arrays is one projection pair. The function standardizes and jitters both.
    k : int
        Number of neighbours.
    seed : int
        Seed of the jitter.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        The shapes differ, a value is not finite, there are fewer than 2 projections, `k` < 1, or there are no more than
        `k` samples.
    """
    return smi_from_prepared(prepare_projections(PU, seed), PV, k, seed)


def smi_discrete_from_projections(PU: ArrayLike, labels: ArrayLike, k: int = 3, seed: int = 0) -> Estimate:
    """Estimate sliced mutual information from projections of the continuous side and class labels.

    Parameters
    ----------
    PU : array_like, [n, m]
        Projections. The function standardizes and jitters them.
    labels : array_like, [n]
        Class of each sample.
    k : int
        Number of neighbours.
    seed : int
        Seed of the jitter.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        As in `sliced_mi_discrete`.
    """
    _, _, noise, _ = _streams(seed)
    return _summary(ross_batch(jitter(standardize(PU), noise), labels, k))


def paired_difference(base_per_projection: ArrayLike, trial_per_projection: ArrayLike) -> tuple[float, float]:
    """Compute the mean difference of two estimates over their common projections, and its standard error.

    Parameters
    ----------
    base_per_projection, trial_per_projection : array_like, [m]
        `Estimate.per_projection` of two estimates with the same directions, samples and seed.

    Returns
    -------
    difference : float
        Mean of base minus trial, in nats.
    se : float
        Standard error of the mean, in nats.

    Raises
    ------
    ValueError
        The numbers of projections differ, or are below 2.
    """
    base, trial = np.asarray(base_per_projection), np.asarray(trial_per_projection)
    if base.shape != trial.shape:
        raise ValueError(f"{base.size} and {trial.size} projections cannot be paired")
    difference = _summary(base - trial)
    return difference.value, difference.se


def _summary(per_projection: FloatArray) -> Estimate:
    m = per_projection.size
    if m < 2:
        raise ValueError(f"a standard error needs at least 2 projections, found {m}")
    se = float(per_projection.std(ddof=1)) / m**0.5
    return Estimate(value=float(per_projection.mean()), se=se, per_projection=per_projection)


def _project(U: ArrayLike, m: int, seed_sequence: np.random.SeedSequence) -> FloatArray:
    U = np.asarray(U, dtype=np.float64)
    flat = U.reshape(U.shape[0], -1)
    return flat @ directions(flat.shape[1], m, seed_sequence)


def _streams(seed: int) -> tuple[np.random.SeedSequence, ...]:
    """Return independent seeds for the directions θ and φ and for the jitter of the two sides."""
    return tuple(np.random.SeedSequence(seed).spawn(4))
