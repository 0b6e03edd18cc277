"""Rounded layers: what they compute, their biases, and those of which images say little."""

from __future__ import annotations

import numpy as np
import pytest

from infoq_onnx.quantize.coordinate_descent import descend
from infoq_onnx.quantize.gptq import factorize, gptq
from infoq_onnx.quantize.least_squares import fit
from infoq_onnx.quantize.levels import SHIFTED_BITS
from infoq_onnx.quantize.rounding import Rounded, round_layer, round_widths
from infoq_onnx.schema import BITS
from tests.quantize.layers import (
    Array,
    hessian_of,
    inputs,
    levels_of,
    moments_of,
    nearest,
    normal,
    outputs,
    quadratic,
    values_of,
)


@pytest.mark.parametrize(("bits", "share"), [(3, 2), (SHIFTED_BITS, 2), (SHIFTED_BITS + 1, 1), (8, 1)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("exact_input", [True, False])
def test_fit_gptq_and_descent_one_behind_the_other(exact_input: bool, has_bias: bool, bits: int, share: int) -> None:
    x, weight = inputs(200, 12, 2, correlation=0.6) + np.float32(1), normal(2, 4, 12)
    moments = moments_of(x, outputs(x, weight) + inputs(200, 4, 2, seed=5), batches=3)
    fitted = fit(weight, moments, centred=has_bias, exact_input=exact_input)
    levels = levels_of(fitted.weight, fitted.hessian, bits, shifted=share == 2)
    steps = gptq(fitted.weight, factorize(fitted.hessian), levels)
    steps, levels = descend(fitted.weight, fitted.hessian, steps, levels)
    rounded = round_layer(weight, moments, bits, has_bias=has_bias, exact_input=exact_input)
    np.testing.assert_array_equal(rounded.codes, steps * share)
    np.testing.assert_array_equal(rounded.scales, (levels.scales / share).astype(np.float32))


@pytest.mark.parametrize("exact_input", [False, True])
def test_widths_know_nothing_of_one_another(exact_input: bool) -> None:
    x, weight = inputs(200, 12, 2, correlation=0.8), normal(2, 4, 12)
    moments = moments_of(x, outputs(x, weight) + inputs(200, 4, 2, seed=5), batches=3)
    together = round_widths(weight, moments, BITS, has_bias=True, exact_input=exact_input)
    assert tuple(together) == BITS
    for bits, found in together.items():
        alone = round_layer(weight, moments, bits, has_bias=True, exact_input=exact_input)
        np.testing.assert_array_equal(found.codes, alone.codes)
        np.testing.assert_array_equal(found.scales, alone.scales)
        assert found.bias is not None
        assert alone.bias is not None
        np.testing.assert_array_equal(found.bias, alone.bias)


@pytest.mark.parametrize("bits", BITS)
def test_codes_stay_within_their_bits(bits: int) -> None:
    x, weight = inputs(100, 30, 2, correlation=0.9), normal(2, 8, 30)
    rounded = round_layer(weight, moments_of(x, outputs(x, weight)), bits, has_bias=True)
    codes = rounded.codes.astype(int)
    spread = codes - codes.min(axis=2, keepdims=True)
    share = 2 if bits <= SHIFTED_BITS else 1
    assert spread.max() <= share * (2**bits - 1)
    assert not np.any(spread % share)
    # what a byte holds, and without VNNI what two products of bytes may add up to
    assert np.abs(codes).max() <= (127 if bits == 8 else 64)
    assert (rounded.codes.dtype, rounded.scales.dtype) == (np.int8, np.float32)


def test_arguments_are_left_alone() -> None:
    x, weight = inputs(50, 12), normal(1, 3, 12)
    kept, moments = weight.copy(), moments_of(x, x[:, :, :3], batches=2)
    first = round_layer(weight, moments, 4, has_bias=True)
    np.testing.assert_array_equal(weight, kept)
    again = round_layer(weight, moments, 4, has_bias=True)
    np.testing.assert_array_equal(first.codes, again.codes)
    np.testing.assert_array_equal(first.scales, again.scales)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bias_sets_the_mean(bits: int) -> None:
    x = inputs(500, 12, 2, correlation=0.6) + np.float32(2)
    t = (x @ normal(2, 12, 4) - 5).astype(np.float32)
    rounded = round_layer(normal(2, 4, 12), moments_of(x, t, batches=4), bits, has_bias=True)
    assert rounded.bias is not None
    computed = x.astype(np.float64) @ values_of(rounded).transpose(0, 2, 1) + rounded.bias[:, None]
    np.testing.assert_allclose(computed.mean(axis=1), t.mean(axis=1, dtype=np.float64), atol=1e-5)


def test_means_do_not_steer_what_a_bias_can_mend() -> None:
    x, weight = inputs(500, 12, correlation=0.6), normal(1, 4, 12)
    t = outputs(x, weight)
    plain = round_layer(weight, moments_of(x, t), 3, has_bias=True)
    shifted = round_layer(weight, moments_of(x + np.float32(8), t - np.float32(32)), 3, has_bias=True)
    np.testing.assert_array_equal(plain.codes, shifted.codes)
    np.testing.assert_allclose(plain.scales, shifted.scales, rtol=1e-4)


@pytest.mark.parametrize(("bits", "share"), [(2, 0.6), (3, 0.7), (4, 0.85)])
def test_output_error_is_less_than_that_of_nearest_codes(bits: int, share: float) -> None:
    """On other inputs than the layer was fitted to, which have been quantized roughly."""
    weight = normal(2, 8, 40)
    clean = inputs(3000, 40, 2, correlation=0.8)
    rough = np.rint(2 * clean) / np.float32(2)
    t = outputs(clean, weight)
    rounded = round_layer(weight, moments_of(rough[:, :2000], t[:, :2000]), bits, has_bias=True)
    levels = levels_of(weight, None, bits)

    def error(values: Array) -> float:
        return float(np.square(t[:, 2000:] - rough[:, 2000:] @ values.transpose(0, 2, 1)).mean())

    assert error(values_of(rounded)) < share * error(nearest(weight, levels) * levels.scales[:, :, None])


def test_no_bias_is_made_where_there_is_none() -> None:
    x, weight = inputs(100, 8), normal(1, 4, 8)
    rounded = round_layer(weight, moments_of(x, outputs(x, weight)), 4, has_bias=False)
    assert rounded.bias is None
    assert (rounded.codes.dtype, rounded.scales.dtype) == (np.int8, np.float32)
    assert (rounded.codes.shape, rounded.scales.shape) == ((1, 4, 8), (1, 4))


def test_groups_do_not_know_of_each_other() -> None:
    """But for the damping, which is chosen for all of them together, where there are two halves to choose it by."""
    x, weight = inputs(200, 9, 5, correlation=0.5), normal(5, 3, 9)
    t = outputs(x, weight)
    together = round_layer(weight, moments_of(x, t, halved=False), 3, has_bias=True)
    for group in range(5):
        one = slice(group, group + 1)
        alone = round_layer(weight[one], moments_of(x[one], t[one], halved=False), 3, has_bias=True)
        np.testing.assert_array_equal(alone.codes, together.codes[one])
        np.testing.assert_allclose(alone.scales, together.scales[one], rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 4])
def test_an_exact_input_is_rounded_to_compute_what_the_weights_do(bits: int) -> None:
    """With fewer images than inputs, too: what is fitted is nothing but the codes."""
    x, weight = inputs(40, 60, correlation=0.9), normal(1, 8, 60)
    rounded = round_layer(weight, moments_of(x, outputs(x, weight)), bits, has_bias=True, exact_input=True)
    levels = levels_of(weight, None, bits)
    hessian = hessian_of(inputs(4000, 60, correlation=0.9, seed=5))
    before = quadratic(weight, hessian, nearest(weight, levels), levels.scales)
    assert quadratic(weight, hessian, rounded.codes, rounded.scales).mean() < 0.75 * before.mean()


# ------------------------------------------------------------------------------------------------- little to learn from


def assert_finite(rounded: Rounded) -> None:
    assert np.isfinite(rounded.scales).all()
    assert np.all(rounded.scales > 0)
    assert rounded.bias is None or np.isfinite(rounded.bias).all()


@pytest.mark.parametrize("has_bias", [True, False])
def test_dead_inputs_keep_their_weights(has_bias: bool) -> None:
    x, weight = inputs(200, 10, 2, correlation=0.5), normal(2, 4, 10)
    x[:, :, 3] = 0
    x[0, :, 4] = 0.3 if has_bias else 0
    t = outputs(x, weight)
    rounded = round_layer(weight, moments_of(x, t, batches=3), 8, has_bias=has_bias)
    assert_finite(rounded)
    dead = np.abs(values_of(rounded) - weight)[:, :, 3]
    # half a step, and a little for the scale that is fitted afterwards
    assert np.all((dead < 0.6 * rounded.scales) | (np.abs(rounded.codes[:, :, 3]) == 127))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("count", [1, 7, 1000])
@pytest.mark.parametrize("width", [1, 9, 64, 300])
def test_an_input_that_never_varies(width: int, count: int, has_bias: bool) -> None:
    x = np.repeat(inputs(1, width, 2), count, axis=1)
    weight = normal(2, 5, width)
    t = outputs(x, weight) + np.float32(1)
    rounded = round_layer(weight, moments_of(x, t), 4, has_bias=has_bias)
    assert_finite(rounded)
    if has_bias:
        assert rounded.bias is not None
        # H is as good as none: the nearest level of each weight, on the channel's own grid
        steps = 2 * rounded.scales[:, :, None].astype(np.float64)
        inside = np.abs(values_of(rounded) - weight) <= 0.5001 * steps
        ends = rounded.codes.astype(int)
        ends = (ends == ends.min(axis=2, keepdims=True)) | (ends == ends.max(axis=2, keepdims=True))
        assert np.all(inside | ends)
        computed = x[:, :1] @ values_of(rounded).transpose(0, 2, 1) + rounded.bias[:, None]
        np.testing.assert_allclose(computed, t[:, :1], atol=1e-4)


@pytest.mark.parametrize("has_bias", [True, False])
def test_fewer_samples_than_weights(has_bias: bool) -> None:
    x, weight = inputs(10, 60, 2), normal(2, 4, 60)
    t = outputs(x, weight)
    assert_finite(round_layer(weight, moments_of(x, t, batches=10), 3, has_bias=has_bias))


def test_dead_layers() -> None:
    zeros = np.zeros((2, 50, 9), np.float32)
    for has_bias in (True, False):
        rounded = round_layer(np.zeros((2, 4, 9)), moments_of(zeros, zeros[:, :, :4]), 4, has_bias=has_bias)
        assert_finite(rounded)
        assert not rounded.codes.any()


@pytest.mark.parametrize("dead", [0.0, 1e-12])
def test_dead_channels_get_a_scale_that_their_bias_can_live_with(dead: float) -> None:
    """A pruned channel still has its bias, which is stored as an int32 in units of its scale."""
    x, weight = inputs(5000, 30, correlation=0.5) + np.float32(1), normal(1, 5, 30)
    weight[0, 2] *= dead
    t = outputs(x, weight)
    t[:, :, 2] = 0.7
    rounded = round_layer(weight, moments_of(x, t, batches=3), 4, has_bias=True)
    assert_finite(rounded)
    assert rounded.bias is not None
    assert rounded.scales[0, 2] >= rounded.scales.max() * 2.0**-16
    assert rounded.bias[0, 2] == pytest.approx(0.7, abs=1e-4)


def test_few_samples_are_not_learnt_by_heart() -> None:
    """With fewer samples than inputs there are directions in which errors seem to cost nothing."""
    weight = normal(1, 16, 128)
    x = inputs(1000, 128, correlation=0.3)
    t = (x @ weight.transpose(0, 2, 1)).astype(np.float32)
    few = round_layer(weight, moments_of(x[:, :40], t[:, :40]), 2, has_bias=False, exact_input=True)
    many = round_layer(weight, moments_of(x[:, :900], t[:, :900]), 2, has_bias=False, exact_input=True)
    levels = levels_of(weight, hessian_of(x[:, :40]), 2)
    by_heart = gptq(weight, factorize(hessian_of(x[:, :40])), levels) * levels.scales[:, :, None]

    def error(values: Array) -> float:
        lost = (x[:, 900:] @ (values - weight).transpose(0, 2, 1).astype(np.float32)).astype(np.float64)
        return float(np.mean(lost**2))

    assert error(few.codes * few.scales[:, :, None].astype(np.float64)) < 0.8 * error(by_heart)
    assert error(many.codes * many.scales[:, :, None].astype(np.float64)) < error(by_heart)
