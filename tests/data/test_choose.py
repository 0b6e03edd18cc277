from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from infoq_onnx.data.choose import CLASS_SAMPLES, choose
from infoq_onnx.data.sources import Source, open_source
from infoq_onnx.errors import SettingsError


def labelled(counts: list[int]) -> Source:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    return Source(Path("x"), None, (), np.zeros((len(labels), 1)), labels, None)


def unlabelled(count: int) -> Source:
    return Source(Path("x"), None, (), np.zeros((count, 1)), None, None)


def shares(source: Source, chosen: np.ndarray) -> list[int]:
    assert source.labels is not None
    return np.bincount(source.labels[chosen], minlength=int(source.labels.max()) + 1).tolist()


@pytest.mark.parametrize("source", [labelled([3, 4]), unlabelled(7)])
@pytest.mark.parametrize("samples", [None, 7, 100])
def test_all_of_them(source: Source, samples: int | None) -> None:
    assert choose(source, samples, 0).tolist() == list(range(7))


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    samples=st.integers(1, 400),
    seed=st.integers(0, 2**32),
)
def test_as_many_as_asked_for_each_once_in_order(counts: list[int], samples: int, seed: int) -> None:
    for source in (labelled(counts), unlabelled(sum(counts))):
        chosen = choose(source, samples, seed)
        assert chosen.dtype == np.int64
        assert len(chosen) == min(samples, len(source))
        assert (np.diff(chosen) > 0).all()
        assert chosen[0] >= 0
        assert chosen[-1] < len(source)
        np.testing.assert_array_equal(chosen, choose(source, samples, seed))


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.integers(1, 80), min_size=1, max_size=12), samples=st.integers(1, 300), seed=st.integers(0, 9)
)
def test_classes_give_equal_shares_as_far_as_they_can(counts: list[int], samples: int, seed: int) -> None:
    assume(not 2 <= samples // CLASS_SAMPLES < len(counts))
    source = labelled(counts)
    taken = np.array(shares(source, choose(source, samples, seed)))
    able = taken < counts
    if able.any():
        assert taken.max() <= taken[able].min() + 1


def test_a_short_class_gives_all_it_has_and_the_others_make_up_for_it() -> None:
    source = labelled([100, 5, 100, 100])
    taken = shares(source, choose(source, 95, 0))
    assert taken == [30, 5, 30, 30]


def test_many_classes_are_narrowed_to_some_with_enough_samples() -> None:
    source = labelled([50] * 100)
    taken = np.array(shares(source, choose(source, 320, 0)))
    assert sorted(taken.tolist()) == [0] * 80 + [16] * 20
    assert (taken > 0).tolist() != (np.array(shares(source, choose(source, 320, 1))) > 0).tolist()


def test_classes_too_small_to_narrow_give_a_random_subset() -> None:
    source = labelled([1] * 1000)
    chosen = choose(source, 300, 0)
    assert len(chosen) == 300
    assert 350 < chosen.mean() < 650
    few_large = labelled([200] + [2] * 100)
    taken = shares(few_large, choose(few_large, 101, 0))
    assert sorted(taken) == [1] * 101


def test_the_seed_decides() -> None:
    for source in (unlabelled(1000), labelled([100] * 10)):
        assert choose(source, 200, 0).tolist() != choose(source, 200, 1).tolist()


def test_values_that_make_no_sense() -> None:
    with pytest.raises(SettingsError, match="cannot choose 0 samples: give 1 or more"):
        choose(unlabelled(3), 0, 0)
    with pytest.raises(SettingsError, match="the seed -1 is negative"):
        choose(unlabelled(3), 1, -1)


def test_the_shared_images(shared: Path) -> None:
    cifar = open_source(shared / "data" / "cifar10" / "calib")
    assert shares(cifar, choose(cifar, 500, 0)) == [50] * 10
    imagenet = open_source(shared / "data" / "imagenet" / "calib")
    assert max(shares(imagenet, choose(imagenet, 128, 0))) == 1


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=20),
    first=st.integers(1, 200),
    further=st.integers(1, 200),
    seed=st.integers(0, 2**32),
)
def test_further_ones_are_others(counts: list[int], first: int, further: int, seed: int) -> None:
    for source in (labelled(counts), unlabelled(sum(counts))):
        taken = choose(source, first, seed)
        chosen = choose(source, further, seed, taken)
        assert len(chosen) == min(further, len(source) - len(taken))
        assert set(chosen.tolist()).isdisjoint(taken.tolist())
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert choose(source, further, seed, taken).tolist() == chosen.tolist()
