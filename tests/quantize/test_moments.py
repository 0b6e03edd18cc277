"""Moments that are summed as batches stream by, against those of all images at once."""

from __future__ import annotations

import numpy as np
import pytest

from infoq_onnx.quantize.moments import Moments, Statistics
from tests.quantize.layers import Float32, inputs, moments_of, normal, outputs


def assert_covariances(found: Statistics, x: Float32, t: Float32, atol: float = 3e-4) -> None:
    """Compare with the textbook's, in float64."""
    width = x.shape[2]
    assert found.count == x.shape[1]
    for group in range(len(x)):
        together = np.cov(x[group].astype(np.float64), t[group].astype(np.float64), rowvar=False, bias=True)
        np.testing.assert_allclose(found.second[group], together[:width, :width], atol=atol / 3)
        np.testing.assert_allclose(found.cross[group], together[width:, :width], atol=atol)
    np.testing.assert_allclose(found.input_mean, x.mean(axis=1, dtype=np.float64), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.target_mean, t.mean(axis=1, dtype=np.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 3.0, 1000.0])
@pytest.mark.parametrize("batches", [1, 7, 200])
def test_centred_moments_are_covariances(offset: float, batches: int) -> None:
    """Also where the mean is so large that its square hides the variance; 200 batches have a column each."""
    x = inputs(200, 5, 2, correlation=0.5) + np.float32(offset)
    t = (x @ normal(2, 5, 3) - 2 * offset).astype(np.float32)
    moments = moments_of(x, t, batches=batches)
    assert moments.count == 200
    assert_covariances(moments.all(centred=True), x, t)


@pytest.mark.parametrize("batches", [1, 7])
def test_moments_about_0(batches: int) -> None:
    x = inputs(200, 5, 2) + np.float32(3)
    t = (x @ normal(2, 5, 3)).astype(np.float32)
    found = moments_of(x, t, batches=batches).all(centred=False)
    np.testing.assert_allclose(found.second, x.astype(np.float64).transpose(0, 2, 1) @ x / 200, rtol=1e-5)
    np.testing.assert_allclose(found.cross, t.astype(np.float64).transpose(0, 2, 1) @ x / 200, rtol=1e-4)


def test_a_constant_does_not_vary() -> None:
    x = np.full((1, 999, 4), 0.3, np.float32)
    x[:, :, 0] = inputs(999, 1)[:, :, 0]
    moments = moments_of(x, np.full((1, 999, 2), 0.7, np.float32), batches=3)
    for found in (moments.all(centred=True), *(moments.halves(centred=True) or ())):
        assert np.all(found.second[0, 1:] == 0)
        assert np.all(found.second[0, :, 1:] == 0)
        assert np.all(found.cross == 0)


# --------------------------------------------------------------------------------------------------------------- halves


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_each_half_has_its_own_moments(offset: float) -> None:
    """About its own means, which differ; unequal halves, in batches that belong to one half or the other."""
    x = inputs(300, 4, 2, correlation=0.5) + np.float32(offset)
    x[:, 220:] += np.float32(2)
    t = (x @ normal(2, 4, 3)).astype(np.float32)
    moments = Moments(2, 4, 3)
    for start in range(0, 300, 20):
        batch = slice(start, start + 20)
        moments.add(x[:, batch], t[:, batch], int(start >= 220))
    halves = moments.halves(centred=True)
    assert halves is not None
    assert_covariances(halves[0], x[:, :220], t[:, :220])
    assert_covariances(halves[1], x[:, 220:], t[:, 220:])
    assert_covariances(moments.all(centred=True), x, t)


def test_halves_make_up_the_whole() -> None:
    x = inputs(101, 6, 2, correlation=0.3) + np.float32(1)
    moments = moments_of(x, outputs(x, normal(2, 3, 6)), batches=4)
    halves, whole = moments.halves(centred=False), moments.all(centred=False)
    assert halves is not None
    assert sum(half.count for half in halves) == whole.count == 101
    for field in ("input_mean", "target_mean", "second", "cross"):
        mean = sum(half.count * getattr(half, field) for half in halves) / whole.count
        np.testing.assert_allclose(mean, getattr(whole, field), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("half", [0, 1])
def test_where_one_half_is_empty_there_are_none(half: int) -> None:
    x = inputs(10, 3)
    moments = Moments(1, 3, 3)
    moments.add(x, x, half)
    moments.add(x[:, :0], x[:, :0], 1 - half)
    assert moments.halves(centred=True) is None
    assert_covariances(moments.all(centred=True), x, x)


def test_a_weight_counts_as_so_many_positions() -> None:
    """And one of 0 as none."""
    x, times = inputs(60, 5, 2, correlation=0.4) + np.float32(3), np.arange(60) % 4
    t = outputs(x, normal(2, 3, 5))
    weighted, repeated = Moments(2, 5, 3), Moments(2, 5, 3)
    for half in (0, 1):
        part = slice(30 * half, 30 * half + 30)
        weighted.add(x[:, part], t[:, part], half, times[part].astype(np.float32))
        repeated.add(x[:, part].repeat(times[part], axis=1), t[:, part].repeat(times[part], axis=1), half)
    assert weighted.count == 45
    for centred in (True, False):
        pairs = zip(
            (weighted.all(centred=centred), *(weighted.halves(centred=centred) or ())),
            (repeated.all(centred=centred), *(repeated.halves(centred=centred) or ())),
            strict=True,
        )
        for one, other in pairs:
            for field in ("input_mean", "target_mean", "second", "cross"):
                np.testing.assert_allclose(getattr(one, field), getattr(other, field), rtol=1e-4, atol=1e-4)


def test_arguments_are_left_alone() -> None:
    x, t = inputs(50, 12), inputs(50, 3, seed=1)
    kept = x.copy(), t.copy()
    moments_of(x, t, batches=2).all(centred=False)
    np.testing.assert_array_equal(x, kept[0])
    np.testing.assert_array_equal(t, kept[1])
