"""Sliced mutual information against the closed form of jointly Gaussian vectors, and on awkward columns."""

from __future__ import annotations

import numpy as np
import pytest

from infoq_onnx.sensitivity.estimators import (
    directions,
    ksg_batch,
    paired_difference,
    prepare_projections,
    ross_batch,
    sliced_mi,
    sliced_mi_discrete,
    smi_discrete_from_projections,
    smi_from_prepared,
    smi_from_projections,
    standardize,
)

_MIX = np.array([[1.5, 0.0, 0.5], [0.0, -1.0, 0.8]])
"""V = U · MIX + noise, with U of 2 and V of 3 dimensions, all standard Gaussian."""


def _gaussians(rng, n):
    U = rng.standard_normal((n, 2))
    return U, U @ _MIX + rng.standard_normal((n, 3))


def _closed_form(theta, phi):
    """−½ log(1 − ρ²) of each pair of directions."""
    covariance = np.einsum("dm,dp,pm->m", theta, _MIX, phi)
    variance = np.einsum("pm,pq,qm->m", phi, _MIX.T @ _MIX + np.eye(3), phi)
    return -0.5 * np.log(1 - covariance**2 / variance)


def _sphere(dim, count, seed):
    return directions(dim, count, np.random.SeedSequence(seed))


def test_directions_are_uniform_on_the_sphere():
    theta = _sphere(3, 20000, 1)
    assert theta.shape == (3, 20000)
    assert theta.dtype == np.float64
    np.testing.assert_allclose(np.linalg.norm(theta, axis=0), 1)
    # on the sphere in 3 dimensions every coordinate is uniform on (-1, 1), so its mean is 0 and its variance 1/3
    assert np.abs(theta.mean(axis=1)).max() < 4 / np.sqrt(3 * 20000)
    np.testing.assert_allclose(theta @ theta.T / 20000, np.eye(3) / 3, atol=0.01)
    assert theta.tobytes() == _sphere(3, 20000, 1).tobytes()
    assert theta.tobytes() != _sphere(3, 20000, 2).tobytes()


def test_closed_form_of_given_directions(rng):
    theta, phi = _sphere(2, 32, 1), _sphere(3, 32, 2)
    truth = _closed_form(theta, phi).mean()
    estimates = []
    for _ in range(12):
        U, V = _gaussians(rng, 1000)
        estimates.append(smi_from_projections(U @ theta, V @ phi).value)
    assert abs(np.mean(estimates) - truth) < 4 * np.std(estimates, ddof=1) / np.sqrt(12)


def test_closed_form_over_all_directions(rng):
    truth = _closed_form(_sphere(2, 200_000, 3), _sphere(3, 200_000, 4)).mean()
    estimates = [sliced_mi(*_gaussians(rng, 1000), m=48, seed=seed) for seed in range(12)]
    values = np.array([estimate.value for estimate in estimates])
    assert abs(values.mean() - truth) < 4 * values.std(ddof=1) / np.sqrt(12)
    # the directions are most of the spread here, so the stated standard error has to explain it
    assert 0.5 < np.mean([estimate.se for estimate in estimates]) / values.std(ddof=1) < 2


def test_independent_vectors_share_nothing(rng):
    U, V = rng.standard_normal((300, 5)), rng.standard_normal((300, 4))
    values = [sliced_mi(U[rng.permutation(300)], V, m=16, seed=seed).value for seed in range(16)]
    assert abs(np.mean(values)) < 4 * np.std(values, ddof=1) / 4


def test_discrete_ends_at_the_class_entropy(rng):
    labels = rng.integers(0, 4, 1000)
    U = rng.standard_normal((1000, 6))
    nothing = sliced_mi_discrete(U, labels, m=64)
    something = sliced_mi_discrete(U + np.eye(6)[labels], labels, m=64)
    everything = sliced_mi_discrete(U + 1e4 * np.eye(6)[labels], labels, m=64)
    assert abs(nothing.value) < 0.02
    assert nothing.value + 4 * nothing.se < something.value < everything.value
    assert everything.value == pytest.approx(np.log(4), abs=0.05)


def test_estimate_sums_up_its_projections(rng):
    estimate = sliced_mi(rng.standard_normal((100, 3, 2)), rng.standard_normal((100, 4)), m=9)
    assert estimate.per_projection.shape == (9,)
    assert estimate.value == pytest.approx(estimate.per_projection.mean())
    assert estimate.se == pytest.approx(estimate.per_projection.std(ddof=1) / 3)


def test_same_seed_same_bytes(rng):
    U, V = _gaussians(rng, 200)
    labels = V[:, 0] > 0
    for first, again, other in (
        [sliced_mi(U, V, m=8, seed=seed) for seed in (5, 5, 6)],
        [sliced_mi_discrete(U, labels, m=8, seed=seed) for seed in (5, 5, 6)],
    ):
        assert first.per_projection.tobytes() == again.per_projection.tobytes()
        assert first.value != other.value


def test_projections_are_standardized(rng):
    PU, PV = rng.standard_normal((2, 300, 4))
    labels = rng.integers(0, 3, 300)
    plain = ksg_batch(standardize(PU), standardize(PV))
    np.testing.assert_allclose(smi_from_projections(1e6 * PU + 5, 1e-6 * PV).per_projection, plain, atol=0.01)
    discrete = ross_batch(PU, labels)
    np.testing.assert_allclose(smi_discrete_from_projections(1e6 * PU, labels).per_projection, discrete, atol=0.01)


def test_prepared_side_gives_the_same_bytes(rng):
    PU, PV = rng.standard_normal((2, 200, 5))
    direct = smi_from_projections(PU, PV, k=4, seed=3)
    prepared = smi_from_prepared(prepare_projections(PU, seed=3), PV, k=4, seed=3)
    assert prepared.per_projection.tobytes() == direct.per_projection.tobytes()


def test_dead_layers_carry_exactly_nothing(rng):
    U = rng.standard_normal((200, 7))
    dead = np.full((200, 50), 0.3)
    labels = rng.integers(0, 4, 200)
    for estimate in (sliced_mi(U, dead, m=8), sliced_mi(dead, U, m=8), sliced_mi_discrete(dead, labels, m=8)):
        assert not estimate.per_projection.any()
        assert estimate.value == estimate.se == 0


def test_ties_on_both_sides_are_not_taken_for_dependence(rng):
    # two bits each, independent: the jitter must neither tie the ties together nor hide that nothing is shared
    PU, PV = rng.integers(0, 4, (2, 600, 64)).astype(np.float64)
    estimate = smi_from_projections(PU, PV)
    assert abs(estimate.value) < 0.02
    labels = rng.integers(0, 4, 600)
    assert abs(smi_discrete_from_projections(PU, labels).value) < 0.02


def test_quantized_copy_tells_the_code_entropy(rng):
    codes = rng.integers(0, 4, (2000, 8)).astype(np.float64)
    estimate = smi_from_projections(codes, codes)
    assert estimate.value == pytest.approx(np.log(4), abs=0.03)


def test_common_directions_cancel_in_the_difference(rng):
    U, V = _gaussians(rng, 500)
    base = sliced_mi(U, V, m=64)
    trial = sliced_mi(U, V + 0.05 * rng.standard_normal(V.shape), m=64)
    mean, se = paired_difference(base.per_projection, trial.per_projection)
    assert mean == pytest.approx(base.value - trial.value)
    assert se < 0.5 * np.hypot(base.se, trial.se)
    assert paired_difference(base.per_projection, base.per_projection) == (0, 0)


def test_refuses(rng):
    U = rng.standard_normal((10, 3))
    with pytest.raises(ValueError, match="at least 2 projections, found 1"):
        sliced_mi(U, U, m=1)
    with pytest.raises(ValueError, match="10 samples do not have 10 neighbours"):
        sliced_mi(U, U, m=2, k=10)
    with pytest.raises(ValueError, match="must be paired"):
        sliced_mi(U, U[1:], m=2)
    with pytest.raises(ValueError, match="at least one class needs two samples"):
        sliced_mi_discrete(U, np.arange(10), m=2)
    with pytest.raises(ValueError, match="3 and 2 projections cannot be paired"):
        paired_difference([1, 2, 3], [1, 2])
    broken = np.where(U > 0, U, np.nan)
    with pytest.raises(ValueError, match="not finite"):
        sliced_mi(broken, U, m=2)
    with pytest.raises(ValueError, match="not finite"):
        sliced_mi_discrete(broken, U[:, 0] > 0, m=2)
