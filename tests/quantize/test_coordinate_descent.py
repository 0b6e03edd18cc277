"""Coordinate descent on codes and scales, against a search that tries every code and every code vector."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoq_onnx.quantize.coordinate_descent import SWEEPS, descend
from infoq_onnx.quantize.gptq import factorize, gptq
from infoq_onnx.quantize.levels import Levels
from infoq_onnx.schema import BITS
from tests.quantize.layers import Array, hessian_of, inputs, levels_of, nearest, normal, quadratic, values

problems = given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.sampled_from(BITS),
    shifted=st.booleans(),
    width=st.integers(1, 6),
    correlation=st.floats(0, 0.95),
    start=st.sampled_from(["nearest", "gptq", "noise"]),
)


def problem(
    seed: int, bits: int, shifted: bool, width: int, correlation: float, start: str
) -> tuple[Array, Array, Array, Levels]:
    """Weights, hessian, and codes and levels to begin with, of two groups of three rows."""
    columns = inputs(40, width, 2, correlation=correlation, seed=seed)
    columns *= np.random.default_rng(seed).uniform(0.1, 3, width).astype(np.float32)
    hessian, weight = hessian_of(columns), normal(2, 3, width, seed)
    levels = levels_of(weight, hessian, bits, shifted=shifted)
    if start == "gptq":
        return weight, hessian, gptq(weight, factorize(hessian), levels), levels
    if start == "nearest":
        return weight, hessian, nearest(weight, levels), levels
    random = np.random.default_rng(seed + 1)
    codes = levels.lowest[:, :, None] + random.integers(0, levels.count, weight.shape)
    return weight, hessian, codes, replace(levels, scales=levels.scales * random.uniform(0.2, 5, levels.scales.shape))


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


def descended(row: Array, hessian: Array, code: Array, scale: float, every: Array) -> tuple[Array, float]:
    """Give each code in turn the value with the least error among all there are, until none changes."""
    code = code.copy()
    for _ in range(SWEEPS):
        scale = best_scale(row, hessian, code) or scale
        before = code.copy()
        for j in range(len(row)):
            left = row - scale * (code - code[j] * np.eye(len(row))[j])
            tried = left - scale * np.outer(every, np.eye(len(row))[j])
            code[j] = every[int(np.argmin(np.einsum("vd,de,ve->v", tried, hessian, tried)))]
        if np.array_equal(before, code):
            break
    return code, scale


@settings(derandomize=True, deadline=None, max_examples=60)
@problems
def test_each_code_is_the_best_of_all_there_are(
    seed: int, bits: int, shifted: bool, width: int, correlation: float, start: str
) -> None:
    weight, hessian, codes, levels = problem(seed, bits, shifted, width, correlation, start)
    found, after = descend(weight, hessian, codes, levels)
    for g, r in np.ndindex(2, 3):
        every = values(levels, g, r)
        code, scale = descended(weight[g, r], hessian[g], codes[g, r], float(levels.scales[g, r]), every)
        np.testing.assert_array_equal(found[g, r], code)
        assert after.scales[g, r] == pytest.approx(scale, rel=1e-9)


@settings(derandomize=True, deadline=None, max_examples=100)
@problems
def test_no_error_grows_and_codes_stay_within_their_bits(
    seed: int, bits: int, shifted: bool, width: int, correlation: float, start: str
) -> None:
    weight, hessian, codes, levels = problem(seed, bits, shifted, width, correlation, start)
    found, better = descend(weight, hessian, codes, levels)
    before, after = (quadratic(weight, hessian, c, of.scales) for c, of in ((codes, levels), (found, better)))
    assert np.all(after <= before + last_places(weight, hessian))
    np.testing.assert_array_equal(better.lowest, levels.lowest)
    index = found - levels.lowest[:, :, None]
    assert np.all((index >= 0) & (index < levels.count))
    np.testing.assert_array_equal(index, np.rint(index))
    assert np.all(better.scales > 0)


@settings(derandomize=True, deadline=None, max_examples=60)
@problems
def test_no_single_change_would_lower_the_error_any_further(
    seed: int, bits: int, shifted: bool, width: int, correlation: float, start: str
) -> None:
    begun = problem(seed, bits, shifted, width, correlation, "gptq" if start == "noise" else start)
    (weight, hessian, *_), (codes, levels) = begun, descend(*begun)
    scales = levels.scales
    bound = quadratic(weight, hessian, codes, scales) - last_places(weight, hessian)
    for j, index in itertools.product(range(width), range(levels.count)):
        other = codes.copy()
        other[:, :, j] = levels.lowest + index
        assert np.all(quadratic(weight, hessian, other, scales) >= bound)
    for factor in (0.5, 0.999, 1.001, 2.0):
        assert np.all(quadratic(weight, hessian, codes, scales * factor) >= bound)


def exhausted(row: Array, hessian: Array, every: Array) -> tuple[Array, float, float]:
    """Codes, scale and error of the best of all code vectors."""
    best = (np.zeros(len(row)), 0.0, np.inf)
    for vector in itertools.product(every, repeat=len(row)):
        code = np.array(vector, dtype=np.float64)
        scale = best_scale(row, hessian, code)
        error = error_of(row, hessian, code, scale)
        if error < best[2]:
            best = (code, scale, error)
    return best


@pytest.mark.parametrize(("bits", "width"), [(2, 4), (3, 3)])
def test_the_best_of_all_code_vectors_is_a_place_to_stay(bits: int, width: int) -> None:
    weight, hessian = normal(1, 12, width), hessian_of(inputs(60, width, correlation=0.8))
    start = levels_of(weight, hessian, bits)
    best = [exhausted(row, hessian[0], values(start, 0, r)) for r, row in enumerate(weight[0])]
    codes, scales = np.stack([code for code, *_ in best])[None], np.array([[scale for _, scale, _ in best]])
    found, after = descend(weight, hessian, codes, replace(start, scales=scales))
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(after.scales, scales, rtol=1e-12)

    rounded = gptq(weight, factorize(hessian), start)
    codes, after = descend(weight, hessian, rounded, start)
    errors = quadratic(weight, hessian, codes, after.scales)[0]
    least = np.array([error for *_, error in best])
    assert np.all(errors >= least * (1 - 1e-9))
    # there is more than one place to come to rest at, but they are much alike
    assert errors.sum() - least.sum() < 0.5 * (quadratic(weight, hessian, rounded, start.scales).sum() - least.sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("correlation", "share"), [(0.0, 0.97), (0.8, 0.96), (0.95, 0.95)])
def test_error_is_less_than_that_of_gptq(correlation: float, share: float, bits: int) -> None:
    hessian, weight = hessian_of(inputs(400, 60, 2, correlation=correlation)), normal(2, 50, 60)
    levels = levels_of(weight, hessian, bits)
    codes = gptq(weight, factorize(hessian), levels)
    before = quadratic(weight, hessian, codes, levels.scales)
    codes, levels = descend(weight, hessian, codes, levels)
    after = quadratic(weight, hessian, codes, levels.scales)
    assert np.all(after <= before * (1 + 1e-9))
    assert after.mean() < share * before.mean()


# --------------------------------------------------------------------------------------------------------------- scales


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_scales_are_the_best_for_their_codes(bits: int) -> None:
    hessian, weight = hessian_of(inputs(100, 20, 2, correlation=0.7)), normal(2, 5, 20)
    levels = levels_of(weight, hessian, bits)
    found, after = descend(weight, hessian, gptq(weight, factorize(hessian), levels), levels)
    for g, r in np.ndindex(2, 5):
        assert after.scales[g, r] == pytest.approx(best_scale(weight[g, r], hessian[g], found[g, r]), rel=1e-12)


def test_scales_stay_where_codes_say_nothing() -> None:
    """With steps this wide all codes are 0 and fit any scale."""
    weight, hessian = normal(1, 4, 5), np.eye(5)[None]
    levels = Levels(np.full((1, 4), 100.0), np.full((1, 4), -8.0), 16)
    found, after = descend(weight, hessian, np.zeros((1, 4, 5)), levels)
    assert not found.any()
    np.testing.assert_array_equal(after.scales, levels.scales)


def test_scales_stay_positive_where_codes_say_the_opposite() -> None:
    weight = normal(1, 4, 5)
    levels = Levels(np.full((1, 4), 0.5), np.full((1, 4), -7.5), 16)
    found, after = descend(weight, np.eye(5)[None], -nearest(weight, levels), levels)
    assert np.all(after.scales > 0)
    assert np.all(np.einsum("grd,grd->gr", weight, found) > 0)


# --------------------------------------------------------------------------------------------------------------- others


def test_rows_do_not_know_of_each_other() -> None:
    weight, hessian = normal(3, 4, 9), hessian_of(inputs(60, 9, 3, correlation=0.8))
    levels = levels_of(weight, hessian, 3)
    codes = nearest(weight, levels)
    together = descend(weight, hessian, codes, levels)
    for g, r in np.ndindex(3, 4):
        group, row = slice(g, g + 1), slice(r, r + 1)
        one = Levels(levels.scales[group, row], levels.lowest[group, row], levels.count)
        alone = descend(weight[group, row], hessian[group], codes[group, row], one)
        np.testing.assert_array_equal(alone[0], together[0][group, row])
        np.testing.assert_allclose(alone[1].scales, together[1].scales[group, row], rtol=1e-12)


def test_arguments_are_left_alone() -> None:
    weight, hessian, codes, levels = problem(1, 4, True, 12, 0.5, "noise")
    arrays = (weight, hessian, codes, levels.scales, levels.lowest)
    kept = [array.copy() for array in arrays]
    found, after = descend(weight, hessian, codes, levels)
    for array, before in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(array, before)
    assert not np.array_equal(found, codes)
    assert not np.array_equal(after.scales, levels.scales)
