"""Error-compensating rounding against explicit elimination, least squares and nearest rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoq_onnx.quantize import gptq as module
from infoq_onnx.quantize.gptq import factorize, gptq
from infoq_onnx.quantize.levels import Levels
from infoq_onnx.schema import BITS
from tests.quantize.layers import Array, hessian_of, inputs, levels_of, nearest, normal, quadratic

# ------------------------------------------------------------------------------------------------------------- rounding


def eliminated(row: Array, hessian: Array, scale: float, low: float, count: int) -> Array:
    """Round one row as optimal brain surgery does it: with the inverse of H over what is left, made anew each time."""
    left = row.copy()
    codes = np.zeros(len(row))
    remaining = list(np.argsort(-np.diag(hessian), kind="stable"))
    while remaining:
        inverse = np.linalg.inv(hessian[np.ix_(remaining, remaining)])
        first = remaining[0]
        codes[first] = np.clip(np.rint(left[first] / scale - low), 0, count - 1) + low
        left[remaining] -= (left[first] - codes[first] * scale) / inverse[0, 0] * inverse[:, 0]
        remaining.pop(0)
    return codes


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from(BITS), st.booleans(), st.integers(1, 14), st.floats(0, 0.95))
def test_is_optimal_brain_elimination(seed: int, bits: int, shifted: bool, width: int, correlation: float) -> None:
    columns = inputs(40, width, 2, correlation=correlation, seed=seed)
    columns *= np.random.default_rng(seed).uniform(0.1, 3, width).astype(np.float32)
    hessian, weight = hessian_of(columns), normal(2, 3, width, seed)
    levels = levels_of(weight, hessian, bits, shifted=shifted)
    codes = gptq(weight, factorize(hessian), levels)
    for g, r in np.ndindex(2, 3):
        expected = eliminated(weight[g, r], hessian[g], levels.scales[g, r], levels.lowest[g, r], levels.count)
        np.testing.assert_array_equal(codes[g, r], expected)


def test_equal_inputs_are_taken_as_they_come() -> None:
    """With an equal diagonal the order is the natural one: the first code is the nearest, the last makes up for it."""
    hessian = np.array([[[1.0, 0.9], [0.9, 1.0]]])
    levels = Levels(np.ones((1, 1)), np.full((1, 1), -8.0), 16)
    codes = gptq(np.array([[[0.4, 0.4]]]), factorize(hessian), levels)
    np.testing.assert_array_equal(codes, [[[0, 1]]])
    heavier = hessian * np.array([[[1.0, 2.0], [2.0, 4.0]]])
    np.testing.assert_array_equal(gptq(np.array([[[0.4, 0.2]]]), factorize(heavier), levels), [[[1, 0]]])


@pytest.mark.parametrize("bits", BITS)
def test_independent_inputs_have_nothing_to_make_up(bits: int) -> None:
    weight = normal(2, 4, 20)
    hessian = np.stack([np.diag(np.linspace(0.1, 2, 20))] * 2)
    levels = levels_of(weight, None, bits)
    np.testing.assert_array_equal(gptq(weight, factorize(hessian), levels), nearest(weight, levels))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("correlation", "share"), [(0.0, 1.0), (0.8, 0.75), (0.95, 0.5)])
def test_error_is_less_than_that_of_nearest_codes(correlation: float, share: float, bits: int) -> None:
    hessian, weight = hessian_of(inputs(400, 60, 2, correlation=correlation)), normal(2, 100, 60)
    levels = levels_of(weight, hessian, bits)
    before = quadratic(weight, hessian, nearest(weight, levels), levels.scales)
    after = quadratic(weight, hessian, gptq(weight, factorize(hessian), levels), levels.scales)
    assert after.mean() < share * before.mean()


@pytest.mark.parametrize("width", [1, 127, 128, 129, 300])
@pytest.mark.parametrize("block", [7, 1000])
def test_blocks_change_nothing(width: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hessian, weight = hessian_of(inputs(400, width, 2, correlation=0.8)), normal(2, 3, width)
    levels = levels_of(weight, hessian, 4)
    codes = gptq(weight, factorize(hessian), levels)
    monkeypatch.setattr(module, "_BLOCK", block)
    np.testing.assert_array_equal(gptq(weight, factorize(hessian), levels), codes)


@pytest.mark.parametrize("lowest", [-8.0, -7.5, -2.0, 0.0])
def test_codes_are_levels(lowest: float) -> None:
    weight, levels = normal(1, 8, 50), Levels(np.full((1, 8), 0.3 / 8), np.full((1, 8), lowest), 16)
    codes = gptq(weight, factorize(hessian_of(inputs(60, 50, correlation=0.9))), levels)
    assert (codes.min(), codes.max()) == (lowest, lowest + 15)
    np.testing.assert_array_equal(codes - lowest, np.rint(codes - lowest))


def test_arguments_are_left_alone() -> None:
    weight, hessian = normal(1, 3, 12), hessian_of(inputs(50, 12))
    levels = levels_of(weight, hessian, 4)
    arrays = (weight, hessian, levels.scales, levels.lowest)
    kept = [array.copy() for array in arrays]
    gptq(weight, factorize(hessian), levels)
    for array, before in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(array, before)
