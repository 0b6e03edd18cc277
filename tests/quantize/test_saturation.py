"""What 16 bits hold, against trying the activations that push it furthest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from infoq_onnx.quantize.grid import weight_code_limits
from infoq_onnx.quantize.saturation import (
    any_saturated,
    kernel_rows,
    saturated_pairs,
    saturating_product,
    unsaturated,
)

weights = arrays(np.int8, st.tuples(st.integers(1, 5), st.integers(1, 9)))


@settings(derandomize=True, deadline=None)
@given(weights, st.sampled_from([15, 127, 128, 255]))
def test_a_pair_saturates_exactly_where_some_activations_take_it_out_of_16_bits(rows: np.ndarray, largest: int) -> None:
    found = saturated_pairs(rows, largest)
    for channel, row in enumerate(rows.astype(int)):
        padded = [*row, 0] if len(row) % 2 else list(row)
        for pair, (first, second) in enumerate(zip(padded[::2], padded[1::2], strict=True)):
            # the sum is linear in both activations: its extremes are at their ends
            sums = [a * first + b * second for a in (0, largest) for b in (0, largest)]
            assert found[channel, pair] == (min(sums) < -(2**15) or max(sums) >= 2**15)
    assert any_saturated(rows, largest) == found.any()


def test_7_bits_of_either_never_saturate() -> None:
    low, high = weight_code_limits(7)
    assert not any_saturated(np.array([[low, low], [high, high], [low, high]], dtype=np.int8))
    assert not any_saturated(np.array([[127, 127], [-127, -127]], dtype=np.int8), largest=127)
    assert any_saturated(np.array([[65, 64]], dtype=np.int8))
    assert not any_saturated(np.array([[64, 64], [-64, -64], [127, 1], [127, -127]], dtype=np.int8))


@settings(derandomize=True, deadline=None)
@given(weights, st.data())
def test_products_are_exact_where_no_pair_saturates(rows: np.ndarray, data: st.DataObject) -> None:
    activations = data.draw(arrays(np.uint8, st.tuples(st.integers(1, 4), st.just(rows.shape[1]))))
    exact = activations.astype(np.int64) @ rows.astype(np.int64).T
    fits = ~saturated_pairs(rows).any(axis=1)
    np.testing.assert_array_equal(saturating_product(activations, rows)[:, fits], exact[:, fits])


def test_products_saturate_pair_by_pair() -> None:
    activations, rows = np.array([[255, 255, 255, 255, 255]], dtype=np.uint8), np.array([[127, 127, -127, -127, 127]])
    assert saturating_product(activations, rows.astype(np.int8)).tolist() == [[32767 - 32768 + 255 * 127]]


@settings(derandomize=True, deadline=None)
@given(
    arrays(np.int8, st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)), elements=st.integers(-127, 127))
)
@pytest.mark.parametrize(("axis", "convolution"), [(0, True), (0, False), (2, False)])
def test_what_does_not_fit_is_brought_back_and_nothing_else_is_touched(
    axis: int, convolution: bool, codes: np.ndarray
) -> None:
    fitting = unsaturated(codes, axis, convolution=convolution)
    assert fitting.shape == codes.shape
    assert fitting.dtype == np.int8
    before, after = (kernel_rows(one, axis, convolution=convolution).astype(int) for one in (codes, fitting))
    assert not any_saturated(after)
    touched = np.repeat(saturated_pairs(before), 2, axis=-1)[..., : before.shape[-1]]
    np.testing.assert_array_equal(after[~touched], before[~touched])
    # towards 0, and no further than needed
    assert np.all(np.abs(after) <= np.abs(before))
    assert np.all(after * before >= 0)
    pairs = np.add.reduceat(np.abs(after), np.arange(0, after.shape[-1], 2), axis=-1)
    assert np.all(pairs[saturated_pairs(before)] == 128)


def test_convolutions_are_read_position_by_position() -> None:
    codes = np.arange(2 * 3 * 2).reshape(2, 3, 2).astype(np.int8)
    assert kernel_rows(codes, 0, convolution=True)[0].tolist() == [0, 2, 4, 1, 3, 5]
    assert kernel_rows(codes[0], 1, convolution=False).tolist() == [[0, 2, 4], [1, 3, 5]]
