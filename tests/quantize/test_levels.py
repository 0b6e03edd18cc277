"""Levels against a dense scan of scales and lowest levels, and against what is known of normal weights."""

from __future__ import annotations

import numpy as np
import pytest

from infoq_onnx.quantize.grid import weight_code_limits
from infoq_onnx.quantize.levels import SHIFTED_BITS, Levels, search_levels
from infoq_onnx.schema import BITS
from tests.quantize.layers import Array, nearest, normal, quadratic, values

FEW = [bits for bits in BITS if bits <= SHIFTED_BITS]
KINDS = ["normal", "laplace", "outlier", "one sign", "shifted"]


def rows_of(kind: str, width: int) -> Array:
    weight = normal(2, 6, width)
    if kind == "laplace":
        weight = np.random.default_rng(7).laplace(size=weight.shape)
    if kind == "outlier":
        weight[:, :, 0] = 12.0
    if kind == "shifted":
        weight += 1.5
    return -np.abs(weight) if kind == "one sign" else weight


def error_of(weight: Array, importance: Array, levels: Levels) -> Array:
    """Weighted squared error of nearest codes, [G, R]."""
    difference = weight - levels.scales[:, :, None] * nearest(weight, levels)
    return np.asarray(np.einsum("grd,gd->gr", difference**2, importance), dtype=np.float64)


def least_error(weight: Array, importance: Array, candidates: Array, count: int) -> Array:
    """The best of all the lowest levels and 600 scales for every row, [G, R]."""
    largest = np.abs(weight).max(axis=2)
    least = np.full(largest.shape, np.inf)
    for low in candidates:
        for share in np.linspace(0.01, 1.2, 600):
            scales = (largest * share / (count / 2 - 1))[:, :, None]
            codes = np.clip(np.rint(weight / scales - low), 0, count - 1) + low
            least = np.minimum(least, np.einsum("grd,gd->gr", (weight - scales * codes) ** 2, importance))
    return least


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [60, 300])
@pytest.mark.parametrize(
    ("bits", "shifted", "excess"),
    [
        (2, True, 0.01),
        (3, True, 0.01),
        (4, True, 0.05),
        (2, False, 0.01),
        (3, False, 0.01),
        (4, False, 0.05),
        (8, False, 0.7),
    ],
)
def test_as_good_as_a_dense_scan(kind: str, width: int, bits: int, shifted: bool, excess: float) -> None:
    weight, (low, high) = rows_of(kind, width), weight_code_limits(bits)
    count = high - low + 1
    importance = np.random.default_rng(1).uniform(0.1, 2, (2, width))
    candidates = np.arange(0.5 - count, 1, 0.5) if shifted else np.array([low])
    found = search_levels(weight, importance, bits, shifted=shifted)
    assert found.count == count
    assert np.isin(found.lowest, candidates).all()
    assert np.all(
        error_of(weight, importance, found) <= (1 + excess) * least_error(weight, importance, candidates, count)
    )


@pytest.mark.parametrize("bits", BITS)
def test_never_worse_than_the_scale_of_the_largest_weight(bits: int) -> None:
    weight, hessian, (low, high) = normal(2, 6, 9), np.stack([np.eye(9)] * 2), weight_code_limits(bits)
    naive = Levels(np.abs(weight).max(axis=2) / high, np.full((2, 6), float(low)), high - low + 1)
    for shifted in (True, False):
        found = search_levels(weight, np.ones((2, 9)), bits, shifted=shifted)
        before, after = (quadratic(weight, hessian, nearest(weight, one), one.scales) for one in (naive, found))
        assert np.all(after <= before * (1 + 1e-12))


def test_what_matters_more_decides() -> None:
    weight = normal(1, 8, 30)
    importance = np.ones((1, 30))
    importance[0, :5] = 1000.0
    for shifted in (True, False):
        found, plain = (search_levels(weight, one, 3, shifted=shifted) for one in (importance, np.ones((1, 30))))
        only = importance > 1
        assert error_of(weight, only, found).sum() < 0.5 * error_of(weight, only, plain).sum()


@pytest.mark.parametrize(("bits", "distortion"), [(2, 0.1188), (3, 0.03744), (4, 0.01154)])
def test_normal_weights_get_the_grid_that_is_best_for_them(bits: int, distortion: float) -> None:
    """Least mean squared errors of uniform quantizers of a normal variable: Max 1960, table II."""
    weight = normal(1, 4, 40_000)
    found = search_levels(weight, np.ones((1, 40_000)), bits, shifted=True)
    assert np.all(np.abs(found.lowest + (found.count - 1) / 2) <= 0.5)
    np.testing.assert_allclose(error_of(weight, np.ones((1, 40_000)), found) / 40_000, distortion, rtol=0.03)
    if bits == 2:
        usual = search_levels(weight, np.ones((1, 40_000)), bits, shifted=False)
        assert np.all(error_of(weight, np.ones((1, 40_000)), usual) > 1.2 * 40_000 * distortion)


@pytest.mark.parametrize("bits", FEW)
@pytest.mark.parametrize("sign", [1, -1])
def test_weights_of_one_sign_have_all_levels_on_their_side(bits: int, sign: int) -> None:
    weight = sign * np.random.default_rng(0).uniform(0, 1, (1, 5, 400))
    found = search_levels(weight, np.ones((1, 400)), bits, shifted=True)
    for row in range(5):
        assert np.all(sign * values(found, 0, row) >= -0.5)
    uniform = 400 * (1 / 2**bits) ** 2 / 12
    assert np.all(error_of(weight, np.ones((1, 400)), found) < 1.1 * uniform)


@pytest.mark.parametrize("bits", FEW)
def test_weights_on_a_grid_lose_nothing(bits: int) -> None:
    random = np.random.default_rng(bits)
    count = 1 << bits
    lowest = random.choice(np.arange(0.5 - count, 1, 0.5), (2, 6))
    codes = lowest[:, :, None] + random.integers(0, count, (2, 6, 200))
    scales = random.uniform(0.01, 1, (2, 6))
    weight = codes * scales[:, :, None]
    found = search_levels(weight, np.ones((2, 200)), bits, shifted=True)
    assert np.all(error_of(weight, np.ones((2, 200)), found) < 1e-2 * np.square(weight).sum(axis=2) / 4**bits)


@pytest.mark.parametrize("shifted", [True, False])
def test_dead_and_nearly_dead_rows(shifted: bool) -> None:
    weight = normal(1, 4, 30)
    weight[0, 1] = 0
    weight[0, 2] *= 1e-12
    found = search_levels(weight, np.ones((1, 30)), 3, shifted=shifted)
    largest = found.scales[0, [0, 3]].max()
    assert found.scales[0, 1] == largest
    assert found.scales[0, 2] == largest * 2.0**-16
    assert 0.0 in values(found, 0, 1)
    dead = search_levels(np.zeros((1, 3, 4)), np.ones((1, 4)), 3, shifted=shifted)
    assert dead.scales.tolist() == [[1.0] * 3]


def test_arguments_are_left_alone() -> None:
    weight, importance = normal(1, 3, 12), np.ones((1, 12))
    kept = weight.copy()
    search_levels(weight, importance, 4, shifted=True)
    np.testing.assert_array_equal(weight, kept)
    np.testing.assert_array_equal(importance, np.ones((1, 12)))
