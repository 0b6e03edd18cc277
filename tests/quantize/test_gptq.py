"""Error-compensating rounding against explicit elimination, least squares and nearest rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoq_onnx.quantize import gptq as module
from infoq_onnx.quantize.gptq import Moments, Rounded, gptq, round_layer, search_scales
from infoq_onnx.quantize.grid import weight_code_limits
from infoq_onnx.schema import BITS

Array = np.ndarray


def inputs(count: int, width: int, groups: int = 1, *, correlation: float = 0.0, seed: int = 0) -> Array:
    """Columns [G, count, width], float32; neighbouring inputs have the given correlation."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((groups, count, width))
    for i in range(1, width):
        values[:, :, i] = correlation * values[:, :, i - 1] + np.sqrt(1 - correlation**2) * values[:, :, i]
    return values.astype(np.float32)


def normal(groups: int, rows: int, width: int, seed: int = 7) -> Array:
    return np.random.default_rng(seed).standard_normal((groups, rows, width))


def moments_of(columns: Array, targets: Array, *, batches: int = 1) -> Moments:
    moments = Moments(len(columns), columns.shape[2], targets.shape[2])
    for x, t in zip(np.array_split(columns, batches, 1), np.array_split(targets, batches, 1), strict=True):
        moments.add(x, t.astype(np.float32))
    return moments


def hessian_of(columns: Array, damping: float = 0.01) -> Array:
    exact = columns.astype(np.float64)
    second = exact.transpose(0, 2, 1) @ exact / columns.shape[1]
    width = second.shape[-1]
    return second + damping * np.trace(second, axis1=1, axis2=2)[:, None, None] / width * np.eye(width)


def quadratic(weight: Array, hessian: Array, codes: Array, scales: Array) -> Array:
    """(w − sq)ᵀH(w − sq) of each row [G, R]."""
    error = weight - codes * scales[:, :, None]
    return np.einsum("grd,gde,gre->gr", error, hessian, error)


def nearest(weight: Array, scales: Array, bits: int) -> Array:
    return np.clip(np.rint(weight / scales[:, :, None]), *weight_code_limits(bits))


def values_of(rounded: Rounded) -> Array:
    return rounded.codes * rounded.scales[:, :, None].astype(np.float64)


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
    scales = search_scales(weight, np.einsum("gii->gi", hessian), bits)
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
    scales = search_scales(weight, np.einsum("gii->gi", hessian), bits)
    before = quadratic(weight, hessian, nearest(weight, scales, bits), scales)
    after = quadratic(weight, hessian, gptq(weight, hessian, scales, bits), scales)
    assert after.mean() < share * before.mean()


@pytest.mark.parametrize("width", [1, 127, 128, 129, 300])
@pytest.mark.parametrize("block", [7, 1000])
def test_blocks_change_nothing(width: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hessian, weight = hessian_of(inputs(400, width, 2, correlation=0.8)), normal(2, 3, width)
    scales = search_scales(weight, np.einsum("gii->gi", hessian), 4)
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
    columns, weight = inputs(50, 12), normal(1, 3, 12)
    hessian, scales = hessian_of(columns), np.full((1, 3), 0.2)
    kept = [array.copy() for array in (columns, weight, hessian, scales)]
    gptq(weight, hessian, scales, 4)
    moments = moments_of(columns, columns[:, :, :3], batches=2)
    round_layer(weight, moments, 4, has_bias=True)
    for array, before in zip((columns, weight, hessian, scales), kept, strict=True):
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
    diagonal = importance[:, :, None] * np.eye(width)[None] if width < 200 else None

    def error(scales: Array) -> Array:
        difference = weight - scales[:, :, None] * np.clip(np.rint(weight / scales[:, :, None]), low, high)
        return np.einsum("grd,gd->gr", difference**2, importance)

    found = search_scales(weight, importance, bits)
    least = np.min([error(np.abs(weight).max(axis=2) * share / high) for share in np.linspace(0.01, 1.2, 600)], axis=0)
    assert np.all(error(found) <= (1 + excess) * least)
    if diagonal is not None:
        np.testing.assert_allclose(quadratic(weight, diagonal, nearest(weight, found, bits), found), error(found))


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


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rescaling_finds_the_least_quadratic_error(bits: int) -> None:
    hessian, weight = hessian_of(inputs(100, 20, 2, correlation=0.7)), normal(2, 5, 20)
    scales = search_scales(weight, np.einsum("gii->gi", hessian), bits)
    codes = gptq(weight, hessian, scales, bits)
    found = module._rescaled(weight, hessian, codes, scales)
    least = quadratic(weight, hessian, codes, found)
    assert np.all(least < quadratic(weight, hessian, codes, scales))
    for factor in (0.999, 1.001):
        assert np.all(least < quadratic(weight, hessian, codes, found * factor))


def test_scales_stay_positive_where_codes_say_nothing() -> None:
    weight, hessian = np.ones((1, 2, 3)), np.eye(3)[None]
    codes = np.stack([np.zeros((2, 3))])
    codes[0, 1] = -1
    np.testing.assert_array_equal(module._rescaled(weight, hessian, codes, np.full((1, 2), 0.5)), [[0.5, 0.5]])


# -------------------------------------------------------------------------------------------------------------- moments


@pytest.mark.parametrize("offset", [0.0, 3.0, 1000.0])
@pytest.mark.parametrize("batches", [1, 7, 200])
def test_centred_moments_are_covariances(offset: float, batches: int) -> None:
    """Also where the mean is so large that its square hides the variance; 200 batches have a column each."""
    x = inputs(200, 5, 2, correlation=0.5) + np.float32(offset)
    t = (x @ normal(2, 5, 3) - 2 * offset).astype(np.float32)
    moments = moments_of(x, t, batches=batches)
    second, cross = moments.second(centred=True)
    assert moments.count == 200
    for group in range(2):
        together = np.cov(x[group].astype(np.float64), t[group].astype(np.float64), rowvar=False, bias=True)
        np.testing.assert_allclose(second[group], together[:5, :5], atol=1e-4)
        np.testing.assert_allclose(cross[group], together[5:, :5], atol=3e-4)
    np.testing.assert_allclose(moments.input_mean, x.mean(axis=1, dtype=np.float64), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(moments.target_mean, t.mean(axis=1, dtype=np.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batches", [1, 7])
def test_moments_about_0(batches: int) -> None:
    x = inputs(200, 5, 2) + np.float32(3)
    t = (x @ normal(2, 5, 3)).astype(np.float32)
    second, cross = moments_of(x, t, batches=batches).second(centred=False)
    np.testing.assert_allclose(second, x.astype(np.float64).transpose(0, 2, 1) @ x / 200, rtol=1e-5)
    np.testing.assert_allclose(cross, t.astype(np.float64).transpose(0, 2, 1) @ x / 200, rtol=1e-4)


def test_a_constant_does_not_vary() -> None:
    x = np.full((1, 999, 4), 0.3, np.float32)
    x[:, :, 0] = inputs(999, 1)[:, :, 0]
    second, cross = moments_of(x, np.full((1, 999, 2), 0.7, np.float32), batches=3).second(centred=True)
    assert np.all(second[0, 1:] == 0)
    assert np.all(second[0, :, 1:] == 0)
    assert np.all(cross == 0)


# --------------------------------------------------------------------------------------------------------------- layers


def fitted(monkeypatch: pytest.MonkeyPatch, weight: Array, moments: Moments, damping: float, has_bias: bool) -> Array:
    """The real-valued weights that `round_layer` goes on to round."""
    seen: list[Array] = []

    def record(values: Array, *others: Array) -> Array:
        seen.append(values.copy())
        return gptq(values, *others)

    monkeypatch.setattr(module, "gptq", record)
    round_layer(weight, moments, 8, has_bias=has_bias, damping=damping)
    return seen[0]


@pytest.mark.parametrize("has_bias", [True, False])
def test_fit_is_least_squares(has_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs(300, 8, 2, correlation=0.6) + np.float32(1)
    noise = np.random.default_rng(3).standard_normal((2, 300, 4))
    t = (x @ normal(2, 8, 4) + 2 + noise).astype(np.float32)
    found = fitted(monkeypatch, normal(2, 4, 8, seed=9), moments_of(x, t, batches=3), 1e-9, has_bias)
    for group in range(2):
        design = np.hstack([x[group], np.ones((300, int(has_bias)))]).astype(np.float64)
        expected = np.linalg.lstsq(design, t[group].astype(np.float64))[0][:8].T
        np.testing.assert_allclose(found[group], expected, atol=1e-4)


def test_fit_is_ridge_regression_towards_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs(50, 8, correlation=0.6)
    weight, t = normal(1, 4, 8, seed=9), (x @ normal(1, 8, 4)).astype(np.float32)
    found = fitted(monkeypatch, weight, moments_of(x, t), 0.1, has_bias=False)
    strength = 0.1 * np.square(x, dtype=np.float64).mean()
    design = np.vstack([x[0] / np.sqrt(50), np.sqrt(strength) * np.eye(8)])
    wanted = np.vstack([t[0] / np.sqrt(50), np.sqrt(strength) * weight[0].T])
    np.testing.assert_allclose(found[0], np.linalg.lstsq(design, wanted)[0].T, atol=1e-5)
    np.testing.assert_allclose(fitted(monkeypatch, weight, moments_of(x, t), 1e9, has_bias=False), weight, atol=1e-6)


def test_own_outputs_leave_the_weights_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = inputs(100, 8, 2, correlation=0.6), normal(2, 4, 8)
    t = x @ weight.transpose(0, 2, 1)
    for has_bias in (True, False):
        np.testing.assert_allclose(fitted(monkeypatch, weight, moments_of(x, t), 0.01, has_bias), weight, atol=1e-4)


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
    t = x @ weight.transpose(0, 2, 1)
    plain = round_layer(weight, moments_of(x, t), 3, has_bias=True)
    shifted = round_layer(weight, moments_of(x + np.float32(8), t - np.float32(32)), 3, has_bias=True)
    np.testing.assert_array_equal(plain.codes, shifted.codes)
    np.testing.assert_allclose(plain.scales, shifted.scales, rtol=1e-4)


@pytest.mark.parametrize(("bits", "share"), [(2, 0.6), (3, 0.7), (4, 0.85)])
def test_output_error_is_less_than_that_of_nearest_codes(bits: int, share: float) -> None:
    """On other inputs than the layer was fitted to, which have been quantized roughly."""
    weight = normal(2, 8, 40)
    clean = inputs(3000, 40, 2, correlation=0.8)
    rough = np.rint(2 * clean).astype(np.float32) / 2
    t = (clean @ weight.transpose(0, 2, 1)).astype(np.float32)
    rounded = round_layer(weight, moments_of(rough[:, :2000], t[:, :2000]), bits, has_bias=True)
    scales = search_scales(weight, np.ones((2, 40)), bits)

    def error(values: Array) -> float:
        return float(np.square(t[:, 2000:] - rough[:, 2000:] @ values.transpose(0, 2, 1)).mean())

    assert error(values_of(rounded)) < share * error(nearest(weight, scales, bits) * scales[:, :, None])


def test_no_bias_is_made_where_there_is_none() -> None:
    x, weight = inputs(100, 8), normal(1, 4, 8)
    rounded = round_layer(weight, moments_of(x, x @ weight.transpose(0, 2, 1)), 4, has_bias=False)
    assert rounded.bias is None
    assert (rounded.codes.dtype, rounded.scales.dtype) == (np.int8, np.float32)
    assert (rounded.codes.shape, rounded.scales.shape) == ((1, 4, 8), (1, 4))


def test_groups_do_not_know_of_each_other() -> None:
    x, weight = inputs(200, 9, 5, correlation=0.5), normal(5, 3, 9)
    t = x @ weight.transpose(0, 2, 1)
    together = round_layer(weight, moments_of(x, t), 3, has_bias=True)
    for group in range(5):
        one = slice(group, group + 1)
        alone = round_layer(weight[one], moments_of(x[one], t[one]), 3, has_bias=True)
        np.testing.assert_array_equal(alone.codes, together.codes[one])
        np.testing.assert_allclose(alone.scales, together.scales[one], rtol=1e-6)


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
    t = x @ weight.transpose(0, 2, 1)
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
    t = x @ weight.transpose(0, 2, 1) + 1
    rounded = round_layer(weight, moments_of(x, t), 4, has_bias=has_bias)
    assert_finite(rounded)
    if has_bias:
        assert rounded.bias is not None
        scales = search_scales(weight, np.ones((2, width)), 4)
        np.testing.assert_array_equal(rounded.codes, nearest(weight, scales, 4))
        computed = x[:, :1] @ values_of(rounded).transpose(0, 2, 1) + rounded.bias[:, None]
        np.testing.assert_allclose(computed, t[:, :1], atol=1e-4)


@pytest.mark.parametrize("has_bias", [True, False])
def test_fewer_samples_than_weights(has_bias: bool) -> None:
    x, weight = inputs(10, 60, 2), normal(2, 4, 60)
    t = x @ weight.transpose(0, 2, 1)
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
    t = x @ weight.transpose(0, 2, 1).astype(np.float32)
    t[:, :, 2] = 0.7
    rounded = round_layer(weight, moments_of(x, t, batches=3), 4, has_bias=True)
    assert_finite(rounded)
    assert rounded.bias is not None
    assert rounded.scales[0, 2] >= rounded.scales.max() * 2.0**-16
    assert rounded.bias[0, 2] == pytest.approx(0.7, abs=1e-4)
