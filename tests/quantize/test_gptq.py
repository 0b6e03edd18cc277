"""Error-compensating rounding against explicit elimination, least squares and nearest rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoq_onnx.quantize import gptq as module
from infoq_onnx.quantize.gptq import gptq, search_scales
from infoq_onnx.quantize.grid import weight_code_limits
from infoq_onnx.schema import BITS
from tests.quantize.layers import Array, diagonal, hessian_of, inputs, nearest, normal, quadratic

# ------------------------------------------------------------------------------------------------------------- rounding


def eliminated(row: Array, hessian: Array, scale: float, bits: int) -> Array:
    """Round one row as optimal brain surgery does it: with the inverse of H over what is left, made anew each time."""
    low, high = weight_code_limits(bits)
    left = row.copy()
    codes = np.zeros(len(row))
    remaining = list(np.argsort(-np.diag(hessian), kind="stable"))
    while remaining:
        inverse = np.linalg.inv(hessian[np.ix_(remaining, remaining)])
        first = remaining[0]
        codes[first] = np.clip(np.rint(left[first] / scale), low, high)
        left[remaining] -= (left[first] - codes[first] * scale) / inverse[0, 0] * inverse[:, 0]
        remaining.pop(0)
    return codes


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from(BITS), st.integers(1, 14), st.floats(0, 0.95))
def test_is_optimal_brain_elimination(seed: int, bits: int, width: int, correlation: float) -> None:
    columns = inputs(40, width, 2, correlation=correlation, seed=seed)
    columns *= np.random.default_rng(seed).uniform(0.1, 3, width).astype(np.float32)
    hessian, weight = hessian_of(columns), normal(2, 3, width, seed)
    scales = search_scales(weight, diagonal(hessian), bits)
    codes = gptq(weight, hessian, scales, bits)
    for group in range(2):
        for row in range(3):
            expected = eliminated(weight[group, row], hessian[group], scales[group, row], bits)
            np.testing.assert_array_equal(codes[group, row], expected)


def test_equal_inputs_are_taken_as_they_come() -> None:
    """With an equal diagonal the order is the natural one: the first code is the nearest, the last makes up for it."""
    hessian = np.array([[[1.0, 0.9], [0.9, 1.0]]])
    codes = gptq(np.array([[[0.4, 0.4]]]), hessian, np.ones((1, 1)), 4)
    np.testing.assert_array_equal(codes, [[[0, 1]]])
    heavier = hessian * np.array([[[1.0, 2.0], [2.0, 4.0]]])
    np.testing.assert_array_equal(gptq(np.array([[[0.4, 0.2]]]), heavier, np.ones((1, 1)), 4), [[[1, 0]]])


@pytest.mark.parametrize("bits", BITS)
def test_independent_inputs_have_nothing_to_make_up(bits: int) -> None:
    weight = normal(2, 4, 20)
    hessian = np.stack([np.diag(np.linspace(0.1, 2, 20))] * 2)
    scales = np.abs(weight).max(axis=2) / weight_code_limits(bits)[1]
    np.testing.assert_array_equal(gptq(weight, hessian, scales, bits), nearest(weight, scales, bits))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("correlation", "share"), [(0.0, 1.0), (0.8, 0.75), (0.95, 0.5)])
def test_error_is_less_than_that_of_nearest_codes(correlation: float, share: float, bits: int) -> None:
    hessian, weight = hessian_of(inputs(400, 60, 2, correlation=correlation)), normal(2, 100, 60)
    scales = search_scales(weight, diagonal(hessian), bits)
    before = quadratic(weight, hessian, nearest(weight, scales, bits), scales)
    after = quadratic(weight, hessian, gptq(weight, hessian, scales, bits), scales)
    assert after.mean() < share * before.mean()


@pytest.mark.parametrize("width", [1, 127, 128, 129, 300])
@pytest.mark.parametrize("block", [7, 1000])
def test_blocks_change_nothing(width: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hessian, weight = hessian_of(inputs(400, width, 2, correlation=0.8)), normal(2, 3, width)
    scales = search_scales(weight, diagonal(hessian), 4)
    codes = gptq(weight, hessian, scales, 4)
    monkeypatch.setattr(module, "_BLOCK", block)
    np.testing.assert_array_equal(gptq(weight, hessian, scales, 4), codes)


@pytest.mark.parametrize("bits", BITS)
def test_codes_stay_within_their_bits(bits: int) -> None:
    low, high = weight_code_limits(bits)
    weight = normal(1, 8, 50)
    codes = gptq(weight, hessian_of(inputs(60, 50, correlation=0.9)), np.full((1, 8), 0.3 / high), bits)
    assert (codes.min(), codes.max()) == (low, high)
    np.testing.assert_array_equal(codes, np.rint(codes))


def test_arguments_are_left_alone() -> None:
    weight, hessian, scales = normal(1, 3, 12), hessian_of(inputs(50, 12)), np.full((1, 3), 0.2)
    kept = [array.copy() for array in (weight, hessian, scales)]
    gptq(weight, hessian, scales, 4)
    search_scales(weight, diagonal(hessian), 4)
    for array, before in zip((weight, hessian, scales), kept, strict=True):
        np.testing.assert_array_equal(array, before)


# --------------------------------------------------------------------------------------------------------------- scales


def rows_of(kind: str, width: int) -> Array:
    weight = normal(2, 6, width)
    if kind == "laplace":
        weight = np.random.default_rng(7).laplace(size=weight.shape)
    if kind == "outlier":
        weight[:, :, 0] = 12.0
    return -np.abs(weight) if kind == "one sign" else weight


@pytest.mark.parametrize("kind", ["normal", "laplace", "outlier", "one sign"])
@pytest.mark.parametrize("width", [144, 2000])
@pytest.mark.parametrize(("bits", "excess"), [(2, 0.01), (3, 0.01), (4, 0.01), (8, 0.7)])
def test_scales_are_as_good_as_a_dense_scan(kind: str, width: int, bits: int, excess: float) -> None:
    weight, (low, high) = rows_of(kind, width), weight_code_limits(bits)
    importance = np.random.default_rng(1).uniform(0.1, 2, (2, width))
    hessian = importance[:, :, None] * np.eye(width)[None] if width < 200 else None

    def error(scales: Array) -> Array:
        difference = weight - scales[:, :, None] * np.clip(np.rint(weight / scales[:, :, None]), low, high)
        return np.einsum("grd,gd->gr", difference**2, importance)

    found = search_scales(weight, importance, bits)
    least = np.min([error(np.abs(weight).max(axis=2) * share / high) for share in np.linspace(0.01, 1.2, 600)], axis=0)
    assert np.all(error(found) <= (1 + excess) * least)
    if hessian is not None:
        np.testing.assert_allclose(quadratic(weight, hessian, nearest(weight, found, bits), found), error(found))


@pytest.mark.parametrize("bits", BITS)
def test_scales_are_never_worse_than_that_of_the_largest_weight(bits: int) -> None:
    weight, hessian = normal(2, 6, 9), np.stack([np.eye(9)] * 2)
    naive = np.abs(weight).max(axis=2) / weight_code_limits(bits)[1]
    found = search_scales(weight, np.ones((2, 9)), bits)
    before, after = (quadratic(weight, hessian, nearest(weight, scales, bits), scales) for scales in (naive, found))
    assert np.all(after <= before * (1 + 1e-12))


def test_what_matters_more_decides_the_scale() -> None:
    weight = normal(1, 8, 30)
    importance = np.ones((1, 30))
    importance[0, :5] = 1000.0
    found, plain = search_scales(weight, importance, 3), search_scales(weight, np.ones((1, 30)), 3)

    def error(scales: Array) -> float:
        return float(np.square(weight - nearest(weight, scales, 3) * scales[:, :, None])[:, :, :5].sum())

    assert error(found) < 0.5 * error(plain)
