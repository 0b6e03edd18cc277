"""Coordinate descent on codes and scales, against a search that tries every code and every code vector."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoq_onnx.quantize.descent import _SWEEPS, descend
from infoq_onnx.quantize.gptq import gptq, search_scales
from infoq_onnx.quantize.grid import weight_code_limits
from infoq_onnx.schema import BITS
from tests.quantize.layers import Array, diagonal, hessian_of, inputs, nearest, normal, quadratic

problems = given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.sampled_from(BITS),
    width=st.integers(1, 6),
    correlation=st.floats(0, 0.95),
    start=st.sampled_from(["nearest", "gptq", "noise"]),
)


def problem(seed: int, bits: int, width: int, correlation: float, start: str) -> tuple[Array, Array, Array, Array]:
    """Weights, hessian, and codes and scales to begin with, of two groups of three rows."""
    columns = inputs(40, width, 2, correlation=correlation, seed=seed)
    columns *= np.random.default_rng(seed).uniform(0.1, 3, width).astype(np.float32)
    hessian, weight = hessian_of(columns), normal(2, 3, width, seed)
    scales = search_scales(weight, diagonal(hessian), bits)
    if start == "gptq":
        return weight, hessian, gptq(weight, hessian, scales, bits), scales
    if start == "nearest":
        return weight, hessian, nearest(weight, scales, bits), scales
    low, high = weight_code_limits(bits)
    random = np.random.default_rng(seed + 1)
    codes = random.integers(low, high + 1, weight.shape).astype(np.float64)
    return weight, hessian, codes, scales * random.uniform(0.2, 5, scales.shape)


def best_scale(row: Array, hessian: Array, code: Array) -> float:
    """Scale with the least error of one row of codes; 0 where the codes say nothing or the opposite."""
    square = float(code @ hessian @ code)
    return max(float(code @ hessian @ row) / square, 0.0) if square > 0 else 0.0


def error_of(row: Array, hessian: Array, code: Array, scale: float) -> float:
    left = row - scale * code
    return float(left @ hessian @ left)


def last_places(weight: Array, hessian: Array) -> Array:
    """What errors may differ by only because sums are rounded, [G, R]."""
    return np.asarray(1e-12 * np.einsum("grd,gde,gre->gr", weight, hessian, weight), dtype=np.float64)


def descended(row: Array, hessian: Array, code: Array, scale: float, bits: int) -> tuple[Array, float]:
    """Give each code in turn the value with the least error among all there are, until none changes."""
    low, high = weight_code_limits(bits)
    values = np.arange(low, high + 1)
    code = code.copy()
    for _ in range(_SWEEPS):
        scale = best_scale(row, hessian, code) or scale
        before = code.copy()
        for j in range(len(row)):
            left = row - scale * (code - code[j] * np.eye(len(row))[j])
            tried = left - scale * np.outer(values, np.eye(len(row))[j])
            code[j] = values[int(np.argmin(np.einsum("vd,de,ve->v", tried, hessian, tried)))]
        if np.array_equal(before, code):
            break
    return code, scale


@settings(derandomize=True, deadline=None, max_examples=60)
@problems
def test_each_code_is_the_best_of_all_there_are(
    seed: int, bits: int, width: int, correlation: float, start: str
) -> None:
    weight, hessian, codes, scales = problem(seed, bits, width, correlation, start)
    found, steps = descend(weight, hessian, codes, scales, bits)
    for g, r in np.ndindex(2, 3):
        code, scale = descended(weight[g, r], hessian[g], codes[g, r], float(scales[g, r]), bits)
        np.testing.assert_array_equal(found[g, r], code)
        assert steps[g, r] == pytest.approx(scale, rel=1e-9)


@settings(derandomize=True, deadline=None, max_examples=100)
@problems
def test_no_error_grows_and_codes_stay_within_their_bits(
    seed: int, bits: int, width: int, correlation: float, start: str
) -> None:
    weight, hessian, codes, scales = problem(seed, bits, width, correlation, start)
    found, steps = descend(weight, hessian, codes, scales, bits)
    before, after = quadratic(weight, hessian, codes, scales), quadratic(weight, hessian, found, steps)
    assert np.all(after <= before + last_places(weight, hessian))
    low, high = weight_code_limits(bits)
    assert np.all((found >= low) & (found <= high))
    np.testing.assert_array_equal(found, np.rint(found))
    assert np.all(steps > 0)


@settings(derandomize=True, deadline=None, max_examples=60)
@problems
def test_no_single_change_would_lower_the_error_any_further(
    seed: int, bits: int, width: int, correlation: float, start: str
) -> None:
    begun = problem(seed, bits, width, correlation, "gptq" if start == "noise" else start)
    (weight, hessian, *_), (codes, scales) = begun, descend(*begun, bits)
    bound = quadratic(weight, hessian, codes, scales) - last_places(weight, hessian)
    low, high = weight_code_limits(bits)
    for j, value in itertools.product(range(width), range(low, high + 1)):
        other = codes.copy()
        other[:, :, j] = value
        assert np.all(quadratic(weight, hessian, other, scales) >= bound)
    for factor in (0.5, 0.999, 1.001, 2.0):
        assert np.all(quadratic(weight, hessian, codes, scales * factor) >= bound)


def exhausted(row: Array, hessian: Array, bits: int) -> tuple[Array, float, float]:
    """Codes, scale and error of the best of all code vectors."""
    low, high = weight_code_limits(bits)
    best = (np.zeros(len(row)), 0.0, np.inf)
    for values in itertools.product(range(low, high + 1), repeat=len(row)):
        code = np.array(values, dtype=np.float64)
        scale = best_scale(row, hessian, code)
        error = error_of(row, hessian, code, scale)
        if error < best[2]:
            best = (code, scale, error)
    return best


@pytest.mark.parametrize(("bits", "width"), [(2, 4), (3, 3)])
def test_the_best_of_all_code_vectors_is_a_place_to_stay(bits: int, width: int) -> None:
    weight, hessian = normal(1, 12, width), hessian_of(inputs(60, width, correlation=0.8))
    best = [exhausted(row, hessian[0], bits) for row in weight[0]]
    codes, scales = np.stack([code for code, *_ in best])[None], np.array([[scale for _, scale, _ in best]])
    found, steps = descend(weight, hessian, codes, scales, bits)
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(steps, scales, rtol=1e-12)

    start = search_scales(weight, diagonal(hessian), bits)
    rounded = gptq(weight, hessian, start, bits)
    errors = quadratic(weight, hessian, *descend(weight, hessian, rounded, start, bits))[0]
    least = np.array([error for *_, error in best])
    assert np.all(errors >= least * (1 - 1e-9))
    # there is more than one place to come to rest at, but they are much alike
    assert errors.sum() - least.sum() < 0.5 * (quadratic(weight, hessian, rounded, start).sum() - least.sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("correlation", "share"), [(0.0, 0.97), (0.8, 0.96), (0.95, 0.95)])
def test_error_is_less_than_that_of_gptq(correlation: float, share: float, bits: int) -> None:
    hessian, weight = hessian_of(inputs(400, 60, 2, correlation=correlation)), normal(2, 50, 60)
    scales = search_scales(weight, diagonal(hessian), bits)
    codes = gptq(weight, hessian, scales, bits)
    before = quadratic(weight, hessian, codes, scales)
    after = quadratic(weight, hessian, *descend(weight, hessian, codes, scales, bits))
    assert np.all(after <= before * (1 + 1e-9))
    assert after.mean() < share * before.mean()


# --------------------------------------------------------------------------------------------------------------- scales


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_scales_are_the_best_for_their_codes(bits: int) -> None:
    hessian, weight = hessian_of(inputs(100, 20, 2, correlation=0.7)), normal(2, 5, 20)
    scales = search_scales(weight, diagonal(hessian), bits)
    found, steps = descend(weight, hessian, gptq(weight, hessian, scales, bits), scales, bits)
    for g, r in np.ndindex(2, 5):
        assert steps[g, r] == pytest.approx(best_scale(weight[g, r], hessian[g], found[g, r]), rel=1e-12)


def test_scales_stay_where_codes_say_nothing() -> None:
    """With steps this wide all codes are 0 and fit any scale."""
    weight, hessian = normal(1, 4, 5), np.eye(5)[None]
    found, steps = descend(weight, hessian, np.zeros((1, 4, 5)), np.full((1, 4), 100.0), 4)
    assert not found.any()
    np.testing.assert_array_equal(steps, np.full((1, 4), 100.0))


def test_scales_stay_positive_where_codes_say_the_opposite() -> None:
    weight = normal(1, 4, 5)
    found, steps = descend(weight, np.eye(5)[None], -nearest(weight, np.full((1, 4), 0.5), 4), np.full((1, 4), 0.5), 4)
    assert np.all(steps > 0)
    assert np.all(np.einsum("grd,grd->gr", weight, found) > 0)


# --------------------------------------------------------------------------------------------------------------- others


def test_rows_do_not_know_of_each_other() -> None:
    weight, hessian = normal(3, 4, 9), hessian_of(inputs(60, 9, 3, correlation=0.8))
    scales = search_scales(weight, diagonal(hessian), 3)
    codes = nearest(weight, scales, 3)
    together = descend(weight, hessian, codes, scales, 3)
    for g, r in np.ndindex(3, 4):
        group, row = slice(g, g + 1), slice(r, r + 1)
        alone = descend(weight[group, row], hessian[group], codes[group, row], scales[group, row], 3)
        np.testing.assert_array_equal(alone[0], together[0][group, row])
        np.testing.assert_allclose(alone[1], together[1][group, row], rtol=1e-12)


def test_arguments_are_left_alone() -> None:
    arguments = problem(1, 4, 12, 0.5, "noise")
    kept = [array.copy() for array in arguments]
    found, steps = descend(*arguments, 4)
    for array, before in zip(arguments, kept, strict=True):
        np.testing.assert_array_equal(array, before)
    assert not np.array_equal(found, arguments[2])
    assert not np.array_equal(steps, arguments[3])
