"""Ross's estimator against scikit-learn, the definition, and numerical integration."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import digamma
from scipy.stats import norm
from sklearn.feature_selection._mutual_info import _compute_mi_cd

from infoq_onnx.sensitivity.estimators import ross, ross_batch


def _reference(x, labels, k):
    """Eq. 2 of Ross from all pairwise distances; ties at distance 0 count each other."""
    classes, counts = np.unique(labels, return_counts=True)
    kept = np.isin(labels, classes[counts > 1])
    x, labels = x[kept], labels[kept]
    distance = np.abs(x[:, None] - x)
    terms = []
    for i in range(x.size):
        classmates = np.flatnonzero((labels == labels[i]) & (np.arange(x.size) != i))
        k_i = min(k, classmates.size)
        radius = np.nextafter(np.sort(distance[i, classmates])[k_i - 1], 0)
        within = np.count_nonzero(distance[i] <= radius)
        terms.append(digamma(k_i) - digamma(classmates.size + 1) - digamma(within))
    return digamma(x.size) + np.mean(terms)


@pytest.mark.parametrize("ties", [False, True])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(n=st.integers(4, 80), classes=st.integers(1, 30), k=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_equals_scikit_learn_and_the_definition(ties, n, classes, k, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    labels[:2] = labels[2]
    # of small classes scikit-learn takes distances as √(a² − 2ab + b²), which is exact for few enough binary digits
    x = np.round((labels % 5 + rng.standard_normal(n)) * (4 if ties else 2**16)) / 2**16
    estimate = ross(x, labels, k)
    if np.ptp(x) > 0:
        assert estimate == pytest.approx(_reference(x, labels, k), abs=1e-9)
    assert max(0, estimate) == pytest.approx(_compute_mi_cd(x, labels, k), abs=1e-9)


def test_equals_scikit_learn_on_many_points(rng):
    labels = rng.integers(0, 40, 5000)
    x = rng.standard_normal(5000) + labels / 10
    assert ross(x, labels) == pytest.approx(_compute_mi_cd(x, labels, 3), abs=1e-9)


@pytest.mark.parametrize(("share", "shift"), [(0.5, 0.0), (0.5, 1.0), (0.3, 2.0), (0.2, 4.0)])
def test_gaussian_mixture(rng, share, shift):
    def surprise(x):
        density = share * norm.pdf(x, shift) + (1 - share) * norm.pdf(x)
        return -density * np.log(density)

    information = quad(surprise, -9, shift + 9, limit=200)[0] - 0.5 * np.log(2 * np.pi * np.e)
    labels = np.arange(3000) < share * 3000
    estimates = ross_batch(rng.standard_normal((3000, 64)) + shift * labels[:, np.newaxis], labels)
    assert abs(estimates.mean() - information) < 4 * estimates.std() / 8


def test_separated_classes_tell_the_class_entropy(rng):
    labels = rng.integers(0, 8, 4000)
    estimate = ross(100 * labels + rng.standard_normal(4000), labels)
    shares = np.bincount(labels) / 4000
    assert estimate == pytest.approx(-np.sum(shares * np.log(shares)), abs=2e-3)


def test_invariances(rng):
    labels = rng.integers(0, 6, 500)
    x = labels + rng.standard_normal(500)
    estimate = ross(x, labels)
    shuffle = rng.permutation(500)
    assert ross(x[shuffle], labels[shuffle]) == pytest.approx(estimate, abs=1e-12)
    assert ross(4 * x, labels) == pytest.approx(estimate, abs=1e-12)
    assert ross(-x, labels) == pytest.approx(estimate, abs=1e-12)
    assert ross(x, np.array(list("fcadeb"))[labels]) == pytest.approx(estimate, abs=1e-12)


def test_singleton_classes_are_left_out(rng):
    labels = rng.integers(0, 3, 60)
    x = labels + rng.standard_normal(60)
    singletons = np.arange(100, 105)
    assert ross(np.append(x, rng.standard_normal(5)), np.append(labels, singletons)) == ross(x, labels)


def test_columns_stand_alone_whatever_the_threads(rng):
    labels = rng.integers(0, 10, 400)
    X = rng.standard_normal((400, 21)) + labels[:, np.newaxis]
    threads = numba.get_num_threads()
    together = ross_batch(X, labels)
    numba.set_num_threads(1)
    alone = ross_batch(X, labels)
    numba.set_num_threads(threads)
    assert together.tobytes() == alone.tobytes()
    assert [ross(x, labels) for x in X.T] == list(together)


def test_constant_columns_carry_nothing(rng):
    X = rng.standard_normal((100, 2))
    X[:, 0] = 2.5
    estimates = ross_batch(X, rng.integers(0, 3, 100))
    assert estimates[0] == 0
    assert estimates[1] != 0


@pytest.mark.parametrize(
    ("X", "labels", "k", "message"),
    [
        (np.eye(3), [0, 1, 2], 3, "at least one class needs two samples"),
        (np.eye(3), [0, 0], 3, "one label for each of 3 samples"),
        (np.eye(3), [0, 0, 1], 0, "k must be at least 1"),
        (np.arange(3.0), [0, 0, 1], 1, r"found an array of shape \(3,\)"),
        (np.full((3, 3), np.nan), [0, 0, 1], 1, "9 of 9 values are not finite"),
    ],
)
def test_refuses(X, labels, k, message):
    with pytest.raises(ValueError, match=message):
        ross_batch(X, labels, k)
