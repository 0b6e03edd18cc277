"""Biases that give the right mean behind an activation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoq_onnx.quantize.bias_correction import Clipped, bias_behind
from infoq_onnx.quantize.rounding import round_layer
from tests.quantize.layers import Array, Float32, inputs, moments_of, normal, outputs, values_of


def clipped_of(
    x: Float32, targets: Float32, bounds: tuple[float, float] = (0.0, 6.0), added: Float32 | None = None
) -> Clipped:
    return Clipped(x, targets, added, *bounds)


def mean_behind(clipped: Clipped, output: Array) -> Array:
    added = 0 if clipped.added is None else clipped.added
    return np.asarray(np.clip(output + added, clipped.low, clipped.high).mean(axis=1, dtype=np.float64))


@given(
    st.integers(0, 2**16),
    st.sampled_from([(0.0, 6.0), (0.0, np.inf), (-1.0, 1.0), (-np.inf, 2.0)]),
    st.floats(-1.5, 1.5),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_mean_behind_is_that_of_the_target(seed: int, bounds: tuple[float, float], shift: float, adds: bool) -> None:
    x, weight = inputs(400, 8, 2, seed=seed), normal(2, 5, 8, seed)
    targets = outputs(x, weight) + np.float32(shift)
    added = inputs(400, 5, 2, seed=seed + 1) if adds else None
    clipped = clipped_of(x, targets, bounds, added)
    coarse = np.rint(weight)
    bias = bias_behind(clipped, coarse, np.zeros((2, 5)))
    found = mean_behind(clipped, outputs(x, coarse) + bias[:, None])
    np.testing.assert_allclose(found, mean_behind(clipped, targets.astype(np.float64)), atol=2e-4)


def test_without_an_activation_it_is_the_mean_in_front() -> None:
    x, weight = inputs(400, 8), normal(1, 5, 8)
    targets = outputs(x, weight)
    bias = bias_behind(clipped_of(x, targets, (-np.inf, np.inf)), np.rint(weight), np.zeros((1, 5)))
    np.testing.assert_allclose(bias, (targets - outputs(x, np.rint(weight))).mean(axis=1), atol=1e-5)


def test_channels_that_nothing_passes() -> None:
    x, weight = inputs(200, 8), normal(1, 5, 8)
    silent = clipped_of(x, outputs(x, weight) - np.float32(100))
    bias = bias_behind(silent, np.rint(weight), np.zeros((1, 5)))
    assert np.all(np.isfinite(bias))
    assert np.all(mean_behind(silent, outputs(x, np.rint(weight)) + bias[:, None]) < 0.01)
    # one that is silent already stays as it is
    below = np.full((1, 5), -100.0)
    np.testing.assert_array_equal(bias_behind(silent, np.rint(weight), below), below)


@pytest.mark.parametrize("bits", [2, 3])
def test_a_rounded_layer_has_the_mean_behind_its_activation(bits: int) -> None:
    x, weight = inputs(1000, 12, 2, correlation=0.4), normal(2, 4, 12)
    targets = outputs(x, weight)
    clipped, moments = clipped_of(x, targets), moments_of(x, targets)
    behind = round_layer(weight, moments, bits, has_bias=True, clipped=clipped)
    front = round_layer(weight, moments, bits, has_bias=True)
    np.testing.assert_array_equal(behind.codes, front.codes)
    assert behind.bias is not None
    assert front.bias is not None
    product = x.astype(np.float64) @ values_of(behind).transpose(0, 2, 1)
    wanted = mean_behind(clipped, targets.astype(np.float64))
    errors = [
        np.abs(mean_behind(clipped, product + bias[:, None]) - wanted).max() for bias in (behind.bias, front.bias)
    ]
    assert errors[0] < 1e-4 < errors[1]


def test_no_bias_is_made_where_there_is_none() -> None:
    x, weight = inputs(100, 12), normal(1, 4, 12)
    targets = outputs(x, weight)
    clipped = clipped_of(x, targets)
    assert round_layer(weight, moments_of(x, targets), 3, has_bias=False, clipped=clipped).bias is None
