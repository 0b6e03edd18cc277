"""A wide layer is rounded as one whose moments fit memory would be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoq_onnx.quantize import wide
from infoq_onnx.quantize.bias_correction import Clipped
from infoq_onnx.quantize.least_squares import fit
from infoq_onnx.quantize.moments import Moments
from infoq_onnx.quantize.rounding import round_widths
from infoq_onnx.quantize.wide import Columns, WideLayer, is_wide, most_positions


def problem(
    width: int, rows: int, count: int, seed: int = 0, *, weighted: bool = False
) -> tuple[np.ndarray, Moments, Columns, tuple[np.ndarray, np.ndarray]]:
    """A layer whose inputs are like one another, with a noisy target, as moments and as columns."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((width, width)) / np.sqrt(width)
    inputs = (random.standard_normal((count, width)) @ mixing + 0.5).astype(np.float32)
    weight = random.standard_normal((1, rows, width))
    targets = (inputs @ weight[0].T + 0.3 * random.standard_normal((count, rows)) + 1).astype(np.float32)
    weights = random.uniform(0.5, 2, count).astype(np.float32) if weighted else None
    moments, columns = Moments(1, width, rows), Columns(width, rows, count)
    middle = count // 2
    for half, part in enumerate((slice(None, middle), slice(middle, None))):
        some = None if weights is None else weights[part]
        for kept in (moments, columns):
            kept.add(inputs[None, part], targets[None, part], half, some)
    return weight, moments, columns, (inputs, targets)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(5, 60), st.integers(1, 6), st.integers(6, 80), st.booleans(), st.booleans(), st.integers(0, 99))
def test_fits_are_the_same(width: int, rows: int, count: int, centred: bool, weighted: bool, seed: int) -> None:
    weight, moments, columns, _ = problem(width, rows, count, seed, weighted=weighted)
    expected = fit(weight, moments, centred=centred)
    layer = WideLayer(weight, columns, centred=centred)
    np.testing.assert_allclose(layer.fitted(slice(None)), expected.weight, rtol=1e-2, atol=3e-3)
    np.testing.assert_allclose(layer.diagonal, np.einsum("gii->gi", expected.hessian), rtol=1e-4)


@pytest.mark.parametrize("exact_input", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("count", [40, 400])
def test_codes_are_the_same(count: int, has_bias: bool, exact_input: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "_BLOCK", 32)
    weight, moments, columns, (inputs, targets) = problem(100, 8, count)
    clipped = Clipped(inputs[None], targets[None], None, 0.0, np.inf) if has_bias else None
    options = {"has_bias": has_bias, "exact_input": exact_input, "clipped": clipped}
    expected = round_widths(weight, moments, (2, 4, 8), **options)
    found = round_widths(weight, columns, (2, 4, 8), **options)
    for bits, rounded in expected.items():
        same = np.mean(found[bits].codes == rounded.codes)
        assert same > 0.99
        close = np.abs(found[bits].scales / rounded.scales - 1) < 1e-3
        assert close.mean() > 0.8
        assert (found[bits].bias is None) == (rounded.bias is None)
        if rounded.bias is not None and found[bits].bias is not None and same == 1:
            np.testing.assert_allclose(found[bits].bias, rounded.bias, rtol=1e-3, atol=1e-3)


def test_rows_in_chunks_are_rounded_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _, columns, _ = problem(50, 9, 30)
    whole = round_widths(weight, columns, (4,), has_bias=True)[4]
    monkeypatch.setattr(wide, "CHUNK_BYTES", 2 * 8 * 50)
    parts = round_widths(weight, columns, (4,), has_bias=True)[4]
    np.testing.assert_array_equal(parts.codes, whole.codes)
    np.testing.assert_allclose(parts.scales, whole.scales, rtol=1e-6)


def test_positions_beyond_what_is_kept_are_left_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "_COLUMN_BYTES", 20 * 4 * 6)
    assert most_positions(6) == 20
    columns = Columns(6, 2, 75)
    values = np.arange(75, dtype=np.float32)
    for start in range(0, 75, 10):
        part = values[start : start + 10]
        columns.add(np.tile(part[None, :, None], (1, 1, 6)), np.tile(part[None, :, None], (1, 1, 2)), start % 20 // 10)
    inputs, targets, weights, halves = columns.joined()
    assert inputs[:, 0].tolist() == targets[:, 0].tolist() == list(range(0, 75, 4))
    assert set(weights) == {1.0}
    assert set(halves) == {0, 1}


def test_a_layer_whose_inputs_never_vary_keeps_its_weights() -> None:
    weight = np.random.default_rng(0).standard_normal((1, 3, 20))
    columns = Columns(20, 3, 8)
    for half in (0, 1):
        columns.add(np.ones((1, 4, 20), np.float32), np.zeros((1, 4, 3), np.float32), half)
    np.testing.assert_allclose(WideLayer(weight, columns, centred=True).fitted(slice(None)), weight, atol=1e-6)
    found = round_widths(weight, columns, (8,), has_bias=True)[8]
    np.testing.assert_allclose(found.codes * found.scales[:, :, None], weight, atol=0.02)


def test_what_is_wide() -> None:
    assert not is_wide(1, 4608)
    assert is_wide(1, 25088)
    # a grouped convolution has a matrix for each group
    assert not is_wide(2, 25088)
