"""KSG-1 against scikit-learn, an O(n²) reference, and closed forms."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma
from sklearn.feature_selection._mutual_info import _compute_mi_cc

from infoq_onnx.sensitivity.estimators import jitter, ksg, ksg_batch, ksg_prepared, prepare, standardize


def _reference(x, y, k):
    """Eq. 8 of Kraskov et al. with all pairwise distances; ties at distance 0 count each other."""
    dx, dy = np.abs(x[:, None] - x), np.abs(y[:, None] - y)
    distance = np.maximum(dx, dy)
    np.fill_diagonal(distance, np.inf)
    radius = np.nextafter(np.sort(distance, axis=1)[:, k - 1], 0)[:, None]
    within_x, within_y = np.sum(dx <= radius, axis=1), np.sum(dy <= radius, axis=1)
    return digamma(k) + digamma(x.size) - np.mean(digamma(within_x) + digamma(within_y))


def _independent(rng, n):
    return rng.standard_normal(n), rng.standard_normal(n)


def _dependent(rng, n):
    x = rng.standard_normal(n)
    return x, 0.99 * x + 0.1 * rng.standard_normal(n)


def _heavy_tailed(rng, n):
    return rng.standard_cauchy(n), rng.standard_cauchy(n)


def _clustered(rng, n):
    cluster = rng.integers(0, 4, n)
    return cluster * 10 + 1e-3 * rng.standard_normal(n), -cluster + 1e-6 * rng.standard_normal(n)


def _rectified(rng, n):
    x, y = np.maximum(rng.standard_normal((2, n)), 0)
    return jitter(x, 1), jitter(y, 2)


def _half_quantized(rng, n):
    x = rng.standard_normal(n)
    return x, jitter(np.round(x), 3)


def _tied(rng, n):
    return rng.integers(0, 5, n) * 0.1, rng.integers(0, 7, n) * 0.3


_POINTS = [_independent, _dependent, _heavy_tailed, _clustered, _rectified, _half_quantized, _tied]


@pytest.mark.parametrize("points", _POINTS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(n=st.integers(2, 300), k=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_equals_scikit_learn_and_the_definition(points, n, k, seed):
    k = min(k, n - 1)
    x, y = points(np.random.default_rng(seed), n)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert ksg(x, y, k) == 0
        return
    estimate = ksg(x, y, k)
    assert estimate == pytest.approx(_reference(x, y, k), abs=1e-9)
    assert max(0, estimate) == pytest.approx(_compute_mi_cc(x, y, k), abs=1e-9)


@pytest.mark.parametrize("points", _POINTS)
def test_equals_scikit_learn_on_many_points(points):
    x, y = points(np.random.default_rng(5), 4000)
    assert max(0, ksg(x, y, 3)) == pytest.approx(_compute_mi_cc(x, y, 3), abs=1e-9)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, -0.7])
def test_bivariate_gaussian(rng, rho):
    X = rng.standard_normal((3000, 64))
    Y = rho * X + np.sqrt(1 - rho**2) * rng.standard_normal(X.shape)
    estimates = ksg_batch(X, Y)
    assert abs(estimates.mean() + 0.5 * np.log(1 - rho**2)) < 4 * estimates.std() / 8


def test_independent_estimates_are_not_clamped(rng):
    estimates = ksg_batch(rng.standard_normal((500, 64)), rng.standard_normal((500, 64)))
    assert 16 < np.count_nonzero(estimates < 0) < 48


def test_invariances(rng):
    x = rng.standard_normal(700)
    y = x**2 + rng.standard_normal(700)
    estimate = ksg(x, y)
    shuffle = rng.permutation(700)
    assert ksg(x[shuffle], y[shuffle]) == pytest.approx(estimate, abs=1e-12)
    assert ksg(y, x) == pytest.approx(estimate, abs=1e-12)
    assert ksg(8 * x, 8 * y) == estimate
    assert ksg(-x, y) == pytest.approx(estimate, abs=1e-12)
    assert ksg(standardize(5 * x + 3), standardize(-0.1 * y)) == pytest.approx(ksg(standardize(x), standardize(y)))


def test_columns_stand_alone_whatever_the_threads(rng):
    X, Y = rng.standard_normal((2, 400, 21))
    prepared = prepare(X)
    threads = numba.get_num_threads()
    together = ksg_prepared(prepared, Y)
    numba.set_num_threads(1)
    alone = ksg_prepared(prepared, Y)
    numba.set_num_threads(threads)
    assert together.tobytes() == alone.tobytes() == ksg_batch(X, Y).tobytes()
    assert [ksg(x, y) for x, y in zip(X.T, Y.T, strict=True)] == list(together)


def test_constant_columns_carry_nothing(rng):
    X, Y = rng.standard_normal((2, 200, 3))
    X[:, 0], Y[:, 1] = 3.7, 0.0
    estimates = ksg_batch(X, Y)
    assert estimates[0] == estimates[1] == 0
    assert estimates[2] != 0


def test_standardize(rng):
    X = 5 + 3 * rng.standard_normal((100, 3))
    X[:, 1] = 0.1
    X[:, 2] = 1e3 + 1e-12 * rng.standard_normal(100)
    standardized = standardize(X)
    np.testing.assert_allclose(standardized[:, 0].mean(), 0, atol=1e-12)
    np.testing.assert_allclose(standardized[:, 0].std(), 1)
    assert not standardized[:, 1:].any()
    np.testing.assert_allclose(standardize(X[:, 0]), standardized[:, 0], rtol=1e-9)


def test_standardize_does_not_hide_broken_values():
    for broken in (np.nan, np.inf):
        with pytest.raises(ValueError, match="1 of 2 values are not finite"):
            standardize([broken, 1.0])


def test_jitter(rng):
    X = np.round(rng.standard_normal((300, 2)))
    X[:, 1] = 2
    jittered = jitter(X, 7)
    assert jittered.tobytes() == jitter(X, 7).tobytes()
    assert np.unique(jittered[:, 0]).size == 300
    assert (jittered[:, 1] == 2).all()
    assert np.abs(jittered - X).max() < 1e-9
    assert (jitter(X, 8)[:, 0] != jittered[:, 0]).any()


@pytest.mark.parametrize(
    ("X", "Y", "k", "message"),
    [
        (np.eye(3), np.eye(3), 3, "3 samples do not have 3 neighbours"),
        (np.eye(3), np.eye(3), 0, "k must be at least 1"),
        (np.eye(3), np.eye(4), 1, "must be paired"),
        (np.arange(3.0), np.eye(3), 1, r"found an array of shape \(3,\)"),
        (np.empty((0, 2)), np.empty((0, 2)), 1, "found an array of shape"),
        (np.eye(3), np.full((3, 3), np.nan), 1, "9 of 9 values are not finite"),
        (np.diag([np.inf, 1]), np.eye(2), 1, "1 of 4 values are not finite"),
    ],
)
def test_refuses(X, Y, k, message):
    with pytest.raises(ValueError, match=message):
        ksg_batch(X, Y, k)
