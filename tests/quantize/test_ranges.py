"""Activation grids against an exhaustive search over scale and zero point; histograms against numpy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoq_onnx.errors import SettingsError
from infoq_onnx.quantize.grid import dequantize_activation, quantize_activation
from infoq_onnx.quantize.ranges import BINS, RANGES, Histogram, get_range
from infoq_onnx.quantize.ranges.entropy import divergence_of, entropy
from infoq_onnx.quantize.ranges.minmax import minmax
from infoq_onnx.quantize.ranges.mse import mse
from infoq_onnx.quantize.ranges.percentile import PERCENT, percentile
from infoq_onnx.schema import BITS, Quantizer


def sample(kind: str, count: int = 200) -> np.ndarray:
    values = np.random.default_rng(3).standard_normal(count)
    if kind == "relu":
        values = np.maximum(values, 0)
    if kind == "shifted":
        values = 1 + 0.3 * values
    if kind == "negative":
        values = -np.abs(values)
    if kind == "outlier":
        values[0] = 20.0
    return values.astype(np.float32)


def histogram_of(values: np.ndarray) -> Histogram:
    histogram = Histogram.empty(float(values.min()), float(values.max()))
    histogram.add(values)
    return histogram


def squared_error(values: np.ndarray, quantizer: Quantizer) -> float:
    restored = dequantize_activation(quantize_activation(values, quantizer), quantizer)
    return float(np.square(values.astype(np.float64) - restored).sum())


def least_squared_error(values: np.ndarray, bits: int) -> float:
    """Over every zero point and 1000 scales."""
    last = (1 << bits) - 1
    exact = values.astype(np.float64)
    scales = np.linspace(0.02, 1.3, 1000)[:, None] * (max(exact.max(), 0) - min(exact.min(), 0)) / last
    rounded = np.rint(exact / scales)
    return min(
        np.square(exact - scales * np.clip(rounded, -zero, last - zero)).sum(axis=1).min() for zero in range(last + 1)
    )


@pytest.mark.parametrize("kind", ["relu", "normal", "shifted", "negative", "outlier"])
@pytest.mark.parametrize(("bits", "excess"), [(2, 5e-4), (3, 5e-4), (4, 5e-3), (6, 0.3)])
def test_as_good_as_an_exhaustive_search(kind: str, bits: int, excess: float) -> None:
    """At 6 bits 200 values have an error so ragged in the scale, and so small, that less is enough."""
    values = sample(kind)
    found = squared_error(values, mse(histogram_of(values), bits))
    assert found <= (1 + excess) * least_squared_error(values, bits)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12), st.sampled_from(BITS), st.sampled_from([*RANGES])
)
def test_grids_are_usable_whatever_was_seen(values: list[float], bits: int, name: str) -> None:
    quantizer = RANGES[name](histogram_of(np.array(values, dtype=np.float32)), bits)
    assert quantizer.bits == bits
    assert quantizer.scale == float(np.float32(quantizer.scale)) >= np.finfo(np.float32).tiny
    assert isinstance(quantizer.zero_point, int)
    assert 0 <= quantizer.zero_point < 1 << bits
    zero = quantize_activation(np.zeros(1, np.float32), quantizer)
    assert dequantize_activation(zero, quantizer) == 0.0


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("bits", BITS)
def test_one_sided_values_waste_no_codes(bits: int, name: str) -> None:
    assert RANGES[name](histogram_of(sample("relu")), bits).zero_point == 0
    assert RANGES[name](histogram_of(sample("negative")), bits).zero_point == (1 << bits) - 1


def test_more_bits_are_better() -> None:
    values = sample("normal", 2000)
    histogram = histogram_of(values)
    errors = [squared_error(values, mse(histogram, bits)) for bits in BITS]
    assert errors == sorted(errors, reverse=True)


def test_the_grid_depends_on_counts_and_range_alone() -> None:
    values = sample("normal")
    once, again = histogram_of(values), Histogram.empty(float(values.min()), float(values.max()))
    for part in np.array_split(values[::-1], 7):
        again.add(part)
    np.testing.assert_array_equal(once.counts, again.counts)
    assert mse(once, 4) == mse(again, 4)


def test_outliers_are_clipped() -> None:
    """Where a single value is far away, the range of all others gets the codes."""
    values = sample("normal", 20_000)
    values[0] = 15.0
    quantizer = mse(histogram_of(values), 4)
    assert 15 * quantizer.scale < 10


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("bits", [2, 8])
def test_a_tensor_of_zeros(bits: int, name: str) -> None:
    histogram = Histogram.empty(0.0, 0.0)
    histogram.add(np.zeros(10, np.float32))
    assert RANGES[name](histogram, bits) == Quantizer(bits, 1.0, 0)


def test_values_too_small_for_a_float32_scale() -> None:
    values = np.array([0, 1e-42], dtype=np.float32)
    assert mse(histogram_of(values), 8) == Quantizer(8, 1.0, 0)


# --------------------------------------------------------------------------------------------------------- other ranges


def ends(quantizer: Quantizer) -> tuple[float, float]:
    """The least and the largest value of a grid."""
    last = (1 << quantizer.bits) - 1
    return -quantizer.zero_point * quantizer.scale, (last - quantizer.zero_point) * quantizer.scale


def test_minmax_clips_nothing() -> None:
    values = sample("outlier")
    low, high = ends(minmax(histogram_of(values), 8))
    step = (high - low) / 255
    assert high - low == pytest.approx(values.max() - values.min(), rel=1e-6)
    assert abs(low - values.min()) <= step / 2 + 1e-6


@pytest.mark.parametrize("kind", ["normal", "relu", "negative"])
def test_percentile_is_that_of_numpy(kind: str) -> None:
    values = sample(kind, 400_000)
    low, high = ends(percentile(histogram_of(values), 8))
    tail = (100 - PERCENT) / 2
    expected = np.percentile(values, [tail, 100 - tail])
    bin_width = float(values.max() - values.min()) / BINS
    tolerance = 2 * bin_width + (high - low) / 255
    assert low == pytest.approx(min(expected[0], 0), abs=tolerance)
    assert high == pytest.approx(max(expected[1], 0), abs=tolerance)


def plain_divergence(values: np.ndarray, quantizer: Quantizer) -> float:
    """KL of the clipped histogram from that of the codes, in numpy, bin by bin."""
    histogram = histogram_of(values)
    centers, counts = histogram.centers(), histogram.counts
    exact = np.rint(centers / quantizer.scale) + quantizer.zero_point
    inside = np.flatnonzero((exact >= 0) & (exact <= (1 << quantizer.bits) - 1))
    p = counts[inside].astype(float)
    p[0] += counts[: inside[0]].sum()
    p[-1] += counts[inside[-1] + 1 :].sum()
    q = np.zeros(len(inside))
    for code in np.unique(exact[inside]):
        of_code = (exact[inside] == code) & (p > 0)
        if of_code.any():
            q[of_code] = counts[inside][of_code].sum() / of_code.sum()
    p, q = p[p > 0] / p.sum(), q[p > 0] / q.sum()
    with np.errstate(divide="ignore"):
        return float(np.sum(p * np.log(p / q)))


@pytest.mark.parametrize("kind", ["normal", "relu", "outlier"])
def test_entropy_keeps_the_distribution_best(kind: str) -> None:
    """The divergence is that of numpy, and no other range that was tried has a smaller one."""
    values = sample(kind, 20_000)
    histogram = histogram_of(values)
    found = entropy(histogram, 4)
    counts = histogram.counts.astype(np.float64)

    def divergence(quantizer: Quantizer) -> float:
        zero, levels = float(quantizer.zero_point), float((1 << quantizer.bits) - 1)
        return float(divergence_of(histogram.centers(), counts, quantizer.scale, zero, levels))

    assert divergence(found) == pytest.approx(plain_divergence(values, found), rel=1e-9)
    assert divergence(found) <= divergence(minmax(histogram, 4))
    if kind == "outlier":
        assert ends(found)[1] < 10


def test_an_unknown_range_is_refused() -> None:
    with pytest.raises(SettingsError, match="`act_range` max: choose mse or percentile"):
        get_range("max")


# ------------------------------------------------------------------------------------------------------------ histogram


def test_counts_are_those_of_numpy() -> None:
    values = sample("normal", 10_000)
    histogram = histogram_of(values)
    expected, edges = np.histogram(values.astype(np.float64), bins=BINS, range=(histogram.low, histogram.high))
    assert histogram.counts.sum() == len(values)
    # a value on an edge may fall on either side of it
    assert np.abs(np.cumsum(histogram.counts) - np.cumsum(expected)).max() <= 1
    middles = (edges[:-1] + edges[1:]) / 2
    away = np.abs(histogram.centers() - middles) > 1e-9
    assert away.sum() == 1
    assert histogram.centers()[away] == 0.0
    assert edges[:-1][away] <= 0 <= edges[1:][away]


def test_the_range_always_holds_zero() -> None:
    assert (Histogram.empty(1.0, 2.0).low, Histogram.empty(-2.0, -1.0).high) == (0.0, 0.0)


def test_values_beyond_the_range_go_to_the_outermost_bins() -> None:
    histogram = Histogram.empty(-1.0, 1.0)
    histogram.add(np.array([[-5.0, 5.0], [1.0, -1.0]], dtype=np.float32))
    assert histogram.counts[0] == histogram.counts[-1] == 2


def test_what_relu_cut_off_counts_as_zero() -> None:
    histogram = histogram_of(np.array([0, 0, 0, 1], dtype=np.float32))
    assert (histogram.centers()[0], histogram.counts[0]) == (0.0, 3)
    assert Histogram.empty(-1.0, 0.0).centers()[-1] == 0.0
