"""Sliced mutual information: the mean over random one-dimensional projections.

Z. Goldfeld, K. Greenewald, "Sliced mutual information: a scalable measure of statistical dependence" (NeurIPS 2021)::

    SMI(U; V) = E over θ, φ of I(θᵀU; φᵀV),    θ, φ uniform on the unit spheres

A projection of a one-hot variable keeps its classes apart almost surely, so a discrete side is not projected.

The seed decides the directions and the jitter, and nothing else does. Estimates with one seed therefore share them, and
their differences are best taken projection by projection (`paired_difference`): the noise in common cancels.
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
    """A sliced mutual information, in nats."""

    value: float
    """Mean of `per_projection`; may be negative."""
    se: float
    """Standard error of `value` over the projections; the choice of samples is not in it."""
    per_projection: FloatArray
    """[m]."""


def directions(dim: int, count: int, seed_sequence: np.random.SeedSequence) -> FloatArray:
    """Draw `count` directions uniformly from the unit sphere in `dim` dimensions.

    Returns
    -------
    ndarray of float64, [dim, count]
        Unit columns: g/‖g‖ with g ~ N(0, I).
    """
    gaussian = np.random.default_rng(seed_sequence).standard_normal((dim, count))
    gaussian /= np.linalg.norm(gaussian, axis=0)
    return gaussian


def sliced_mi(U: ArrayLike, V: ArrayLike, m: int = 128, k: int = 3, seed: int = 0) -> Estimate:
    """Sliced mutual information of two continuous variables.

    Parameters
    ----------
    U, V : array_like, [n, …]
        One sample a row; the other axes are flattened.
    m : int
        Projection pairs, at least 2.
    k : int
        Neighbours (`ksg`).
    seed : int

    Raises
    ------
    ValueError
        The numbers of samples differ, a value is not finite, `m` < 2, `k` < 1, or no more than `k` samples.
    """
    theta, phi, _, _ = _streams(seed)
    return smi_from_projections(_project(U, m, theta), _project(V, m, phi), k, seed)


def sliced_mi_discrete(U: ArrayLike, labels: ArrayLike, m: int = 128, k: int = 3, seed: int = 0) -> Estimate:
    """Sliced mutual information of a continuous variable and classes.

    Parameters
    ----------
    U : array_like, [n, …]
        One sample a row; the other axes are flattened.
    labels : array_like, [n]
    m : int
        Projections, at least 2.
    k : int
        Neighbours (`ross`).
    seed : int

    Raises
    ------
    ValueError
        The numbers of samples differ, a value is not finite, `m` < 2, `k` < 1, or no class has two samples.
    """
    theta, _, _, _ = _streams(seed)
    return smi_discrete_from_projections(_project(U, m, theta), labels, k, seed)


def prepare_projections(PU: ArrayLike, seed: int = 0) -> Prepared:
    """Standardize, jitter and sort the x side [n, m] once, for `smi_from_prepared`."""
    _, _, noise, _ = _streams(seed)
    return prepare(jitter(standardize(PU), noise))


def smi_from_prepared(PU: Prepared, PV: ArrayLike, k: int = 3, seed: int = 0) -> Estimate:
    """Sliced mutual information from a prepared x side and the projected y side `PV` [n, m].

    `seed` must be the one that `PU` was prepared with: it keeps the jitter of the two sides apart.
    """
    _, _, _, noise = _streams(seed)
    return _summary(ksg_prepared(PU, jitter(standardize(PV), noise), k))


def smi_from_projections(PU: ArrayLike, PV: ArrayLike, k: int = 3, seed: int = 0) -> Estimate:
    """Sliced mutual information from projections that were taken already.

    Parameters
    ----------
    PU, PV : array_like, [n, m]
        Column j of both is one projection pair. They are standardized and jittered here.
    k : int
        Neighbours.
    seed : int
        Of the jitter.

    Raises
    ------
    ValueError
        The shapes differ, a value is not finite, fewer than 2 projections, `k` < 1, or no more than `k` samples.
    """
    return smi_from_prepared(prepare_projections(PU, seed), PV, k, seed)


def smi_discrete_from_projections(PU: ArrayLike, labels: ArrayLike, k: int = 3, seed: int = 0) -> Estimate:
    """Sliced mutual information with `labels` [n] from projections `PU` [n, m] that were taken already.

    They are standardized and jittered here; errors as in `sliced_mi_discrete`.
    """
    _, _, noise, _ = _streams(seed)
    return _summary(ross_batch(jitter(standardize(PU), noise), labels, k))


def paired_difference(base_per_projection: ArrayLike, trial_per_projection: ArrayLike) -> tuple[float, float]:
    """Mean of base minus trial over the projections they share, and its standard error, in nats.

    Parameters
    ----------
    base_per_projection, trial_per_projection : array_like, [m]
        `Estimate.per_projection` of two estimates with the same directions, samples and seed.

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
    """Seeds of the directions θ and φ and of the jitter of the two sides, independent of one another."""
    return tuple(np.random.SeedSequence(seed).spawn(4))
