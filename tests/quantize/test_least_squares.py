"""The least-squares fit against explicit ridge regressions on the samples themselves, and the choice of its damping."""

from __future__ import annotations

import numpy as np
import pytest

from infoq_onnx.quantize import least_squares as module
from infoq_onnx.quantize.damping import DAMPING
from infoq_onnx.quantize.least_squares import fit
from tests.quantize.layers import Array, Float32, diagonal, inputs, moments_of, normal, outputs

CANDIDATES = module.CANDIDATES


def noisy(columns: Float32, weight: Array, noise: float, seed: int = 3) -> Float32:
    """Outputs with noise of that deviation."""
    exact = columns @ weight.transpose(0, 2, 1)
    return (exact + noise * np.random.default_rng(seed).standard_normal(exact.shape)).astype(np.float32)


def ridge(columns: Float32, targets: Float32, weight: Array, damping: float, *, centred: bool) -> Array:
    """Least squares of one group, with the pull towards the weights written as further samples."""
    x, t = columns.astype(np.float64), targets.astype(np.float64)
    if centred:
        x, t = x - x.mean(axis=0), t - t.mean(axis=0)
    pull = np.sqrt(damping * np.square(x).mean())
    design = np.vstack([x / np.sqrt(len(x)), pull * np.eye(x.shape[1])])
    wanted = np.vstack([t / np.sqrt(len(x)), pull * weight.T])
    return np.asarray(np.linalg.lstsq(design, wanted)[0].T, dtype=np.float64)


# ------------------------------------------------------------------------------------------------------------- the fit


@pytest.mark.parametrize("centred", [True, False])
def test_without_damping_it_is_least_squares(centred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CANDIDATES", (1e-9,))
    x = inputs(300, 8, 2, correlation=0.6) + np.float32(1)
    t = noisy(x, normal(2, 4, 8), 1.0) + np.float32(2)
    found = fit(normal(2, 4, 8, seed=9), moments_of(x, t, batches=3), centred=centred)
    for group in range(2):
        design = np.hstack([x[group], np.ones((300, int(centred)))]).astype(np.float64)
        expected = np.linalg.lstsq(design, t[group].astype(np.float64))[0][:8].T
        np.testing.assert_allclose(found.weight[group], expected, atol=1e-4)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("damping", [0.001, 0.1, 10.0])
def test_damping_is_ridge_regression_towards_the_weights(
    damping: float, centred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CANDIDATES", (damping,))
    x = inputs(50, 8, 2, correlation=0.6) + np.float32(1)
    weight, t = normal(2, 4, 8, seed=9), noisy(x, normal(2, 4, 8), 0.5)
    found = fit(weight, moments_of(x, t, batches=3), centred=centred)
    assert found.damping == damping
    for group in range(2):
        expected = ridge(x[group], t[group], weight[group], damping, centred=centred)
        np.testing.assert_allclose(found.weight[group], expected, atol=1e-5)


def test_endless_damping_keeps_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CANDIDATES", (1e9,))
    x, weight = inputs(50, 8), normal(1, 4, 8)
    found = fit(weight, moments_of(x, noisy(x, -weight, 1.0)), centred=False)
    np.testing.assert_allclose(found.weight, weight, atol=1e-6)


@pytest.mark.parametrize("centred", [True, False])
def test_own_outputs_leave_the_weights_as_they_are(centred: bool) -> None:
    x, weight = inputs(100, 8, 2, correlation=0.6), normal(2, 4, 8)
    found = fit(weight, moments_of(x, outputs(x, weight)), centred=centred)
    np.testing.assert_allclose(found.weight, weight, atol=1e-4)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("count", "share"), [(2000, DAMPING), (300, 6 / 300), (4, 6 / 4)])
def test_the_hessian_is_damped_as_the_number_of_samples_asks_and_not_as_the_fit_does(
    count: int, share: float, centred: bool
) -> None:
    x = inputs(count, 6, 2, correlation=0.5) + np.float32(2)
    weight = normal(2, 3, 6)
    second = moments_of(x, outputs(x, weight)).all(centred=centred).second
    strength = share * diagonal(second).mean(axis=1)
    for noise in (0.0, 3.0):
        found = fit(weight, moments_of(x, noisy(x, weight, noise)), centred=centred)
        np.testing.assert_allclose(found.hessian, second + strength[:, None, None] * np.eye(6), rtol=1e-12)
        assert np.all(np.linalg.eigvalsh(found.hessian) > 0)


@pytest.mark.parametrize("exact_input", [True, False])
def test_inputs_that_never_vary_keep_their_weights(exact_input: bool) -> None:
    x, weight = np.full((2, 60, 5), 0.5, np.float32), normal(2, 3, 5)
    found = fit(weight, moments_of(x, outputs(x, weight)), centred=True, exact_input=exact_input)
    np.testing.assert_array_equal(found.weight, weight)
    np.testing.assert_array_equal(found.hessian, np.stack([np.eye(5)] * 2))


def test_arguments_are_left_alone() -> None:
    x, weight = inputs(50, 8), normal(1, 4, 8)
    kept, moments = weight.copy(), moments_of(x, noisy(x, weight, 1.0))
    before = moments.all(centred=True)
    for exact_input in (True, False):
        fit(weight, moments, centred=True, exact_input=exact_input)
    np.testing.assert_array_equal(weight, kept)
    np.testing.assert_array_equal(moments.all(centred=True).second, before.second)
    np.testing.assert_array_equal(moments.all(centred=True).cross, before.cross)


# --------------------------------------------------------------------------------------------------------- exact inputs


@pytest.mark.parametrize("centred", [True, False])
def test_an_exact_input_keeps_the_weights_to_the_bit(centred: bool) -> None:
    """Whatever the targets' own rounding, and however few the images are."""
    x, weight = inputs(7, 30, 2, correlation=0.9), normal(2, 5, 30)
    found = fit(weight, moments_of(x, noisy(x, weight, 1e-3)), centred=centred, exact_input=True)
    np.testing.assert_array_equal(found.weight, weight)
    assert found.damping == DAMPING


# ----------------------------------------------------------------------------------------------------- cross-validation


def crossed(x: Float32, t: Float32, weight: Array, *, centred: bool) -> list[float]:
    """For each candidate, the squared error on each half of a fit to the other, from the samples themselves."""
    middle = x.shape[1] // 2
    halves = (slice(0, middle), slice(middle, None))
    errors = []
    for damping in CANDIDATES:
        error = 0.0
        for known, unknown in (halves, halves[::-1]):
            for group in range(len(x)):
                fitted = ridge(x[group, known], t[group, known], weight[group], damping, centred=centred)
                left = t[group, unknown].astype(np.float64) - x[group, unknown].astype(np.float64) @ fitted.T
                error += np.square(left - left.mean(axis=0) if centred else left).mean(axis=0).sum()
        errors.append(error)
    return errors


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("count", "width", "noise"), [(40, 30, 3.0), (40, 30, 0.3), (300, 30, 3.0), (600, 8, 0.1)])
def test_the_damping_is_the_one_with_the_least_error_on_the_other_half(
    count: int, width: int, noise: float, centred: bool
) -> None:
    for seed in range(5):
        x = inputs(count, width, 2, correlation=0.5, seed=seed) + np.float32(1)
        weight = normal(2, 4, width, seed)
        t = noisy(x, weight + 0.5 * normal(2, 4, width, seed + 100), noise, seed)
        found = fit(weight, moments_of(x, t), centred=centred)
        assert found.damping == CANDIDATES[int(np.argmin(crossed(x, t, weight, centred=centred)))]


def fresh_error(fitted: Array, truth: Array) -> float:
    """Squared error of a fit on samples that it has not seen, of what is not noise."""
    x = inputs(4000, truth.shape[2], seed=77)
    return float(np.square(x @ (fitted - truth).transpose(0, 2, 1)).mean())


def fits(count: int, width: int, noise: float, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float, float]:
    """Damping chosen; error on fresh samples with it, and with the fixed one."""
    x, weight = inputs(count, width), normal(1, 10, width) / np.sqrt(width)
    truth = weight + 0.3 * normal(1, 10, width, seed=11) / np.sqrt(width)
    moments = moments_of(x, noisy(x, truth, noise), batches=4)
    chosen = fit(weight, moments, centred=True)
    monkeypatch.setattr(module, "CANDIDATES", (DAMPING,))
    fixed = fit(weight, moments, centred=True)
    assert fixed.damping == DAMPING
    return chosen.damping, fresh_error(chosen.weight, truth), fresh_error(fixed.weight, truth)


def test_few_noisy_samples_of_many_inputs_are_damped_strongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a classifier behind global pooling, which sees one vector an image."""
    damping, chosen, fixed = fits(count=150, width=100, noise=1.0, monkeypatch=monkeypatch)
    assert damping >= 1
    assert chosen < 0.1 * fixed


def test_many_samples_are_hardly_damped(monkeypatch: pytest.MonkeyPatch) -> None:
    damping, chosen, fixed = fits(count=20_000, width=20, noise=0.02, monkeypatch=monkeypatch)
    assert damping == CANDIDATES[0]
    assert chosen < 0.1 * fixed


def test_where_there_is_only_one_half_the_damping_is_fixed() -> None:
    x, weight = inputs(50, 8), normal(1, 4, 8)
    assert fit(weight, moments_of(x, noisy(x, weight, 5.0), halved=False), centred=True).damping == DAMPING
