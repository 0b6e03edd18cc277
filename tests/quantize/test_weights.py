"""Weight scales against a dense scan of scales, row by row."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoq_onnx.quantize.grid import dequantize_weight, quantize_weight, weight_code_limits
from infoq_onnx.quantize.weight_scales import weight_scales
from infoq_onnx.schema import BITS

ROWS = 12


def rows(kind: str, width: int = 60) -> np.ndarray:
    random = np.random.default_rng(7)
    values = random.laplace(size=(ROWS, width)) if kind == "laplace" else random.standard_normal((ROWS, width))
    if kind == "outlier":
        values[:, 0] = 12.0
    if kind == "one sign":
        values = -np.abs(values)
    return values.astype(np.float32)


def squared_errors(weight: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """Row by row, in float64, with the grid of `infoq_onnx.quantize.grid` written out."""
    low, high = weight_code_limits(bits)
    exact, steps = weight.astype(np.float64), scales.astype(np.float64)[:, None]
    return np.square(exact - steps * np.clip(np.rint(exact / steps), low, high)).sum(axis=1)


def least_squared_errors(weight: np.ndarray, bits: int) -> np.ndarray:
    """The best of 20,000 scales for every row."""
    low, high = weight_code_limits(bits)
    best = []
    for row in weight.astype(np.float64):
        scales = np.linspace(0.01, 1.2, 20_000)[:, None] * np.abs(row).max() / high
        best.append(np.square(row - scales * np.clip(np.rint(row / scales), low, high)).sum(axis=1).min())
    return np.array(best)


@pytest.mark.parametrize("kind", ["normal", "laplace", "outlier", "one sign"])
@pytest.mark.parametrize(("bits", "excess"), [(2, 0.01), (3, 0.01), (4, 0.01), (6, 0.5), (8, 0.7)])
def test_as_good_as_a_dense_scan(kind: str, bits: int, excess: float) -> None:
    """Within 1 % at low bits. At 8 bits the error is so ragged in the scale, and so small, that less is enough."""
    weight = rows(kind)
    found = squared_errors(weight, weight_scales(weight, bits, 0), bits)
    assert np.all(found <= (1 + excess) * least_squared_errors(weight, bits))


@pytest.mark.parametrize("bits", BITS)
def test_never_worse_than_the_scale_of_the_largest_weight(bits: int) -> None:
    weight = rows("laplace", 9)
    naive = np.abs(weight).max(axis=1) / weight_code_limits(bits)[1]
    found = squared_errors(weight, weight_scales(weight, bits, 0), bits)
    assert np.all(found <= squared_errors(weight, naive, bits) * (1 + 1e-6))


def test_more_bits_are_better() -> None:
    weight = rows("normal")
    errors = [squared_errors(weight, weight_scales(weight, bits, 0), bits) for bits in BITS]
    assert all(np.all(after < before) for before, after in itertools.pairwise(errors))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from(BITS))
def test_weights_on_a_grid_lose_nothing_beyond_float32(seed: int, bits: int) -> None:
    random = np.random.default_rng(seed)
    low, high = weight_code_limits(bits)
    codes = random.integers(low, high + 1, size=(4, 40)).astype(np.int8)
    codes[:, 0] = high
    scales = random.uniform(0.01, 1, 4).astype(np.float32)
    weight = dequantize_weight(codes, scales, 0)
    found = weight_scales(weight, bits, 0)
    np.testing.assert_allclose(found, scales, rtol=1e-6)
    np.testing.assert_array_equal(quantize_weight(weight, found, bits, 0), codes)


@pytest.mark.parametrize(("shape", "axis"), [((5, 3, 2, 2), 0), ((3, 5, 2, 2), 1), ((4, 5), 1)])
def test_one_scale_a_channel_along_any_axis(shape: tuple[int, ...], axis: int) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = weight_scales(weight, 3, axis)
    assert found.dtype == np.float32
    assert found.shape == (5,)
    for channel in range(5):
        row = np.take(weight, channel, axis=axis).reshape(1, -1)
        np.testing.assert_array_equal(weight_scales(row, 3, 0), found[[channel]])


def test_scales_follow_the_weights() -> None:
    weight = rows("normal")
    np.testing.assert_array_equal(weight_scales(weight * 8, 4, 0), 8 * weight_scales(weight, 4, 0))


def test_dead_channels_get_a_scale_that_their_bias_can_live_with() -> None:
    weight = rows("normal")[:4]
    weight[1] = 0
    weight[2] *= 1e-12
    scales = weight_scales(weight, 4, 0)
    largest = scales[[0, 3]].max()
    assert scales[1] == largest
    assert scales[2] == largest * np.float32(2.0**-16)
    assert weight_scales(np.zeros((3, 4), np.float32), 4, 0).tolist() == [1.0, 1.0, 1.0]
