"""How images are divided among the blocks of trials."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infoq_onnx.sensitivity.blocks import FIRST, balanced, bounds, positions


@given(st.integers(16, 20_000))
def test_blocks_double_the_images_and_leave_none_out(count: int) -> None:
    found = bounds(count)
    assert found[0][0] == 0
    assert found[-1][1] == count
    assert all(one[1] == other[0] for one, other in itertools.pairwise(found))
    sizes = [stop - start for start, stop in found]
    assert min(count, FIRST) <= sizes[0] < 1.5 * FIRST
    assert all(size == start for size, (start, _) in zip(sizes[1:-1], found[1:-1], strict=True))
    if len(found) > 1:
        assert 0.5 * found[-1][0] <= sizes[-1] <= 2 * found[-1][0]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(20, [20]), (64, [64]), (65, [65]), (96, [64, 32]), (200, [64, 64, 72]), (1000, [64, 64, 128, 256, 488])],
)
def test_some_numbers_of_images(count: int, sizes: list[int]) -> None:
    assert [stop - start for start, stop in bounds(count)] == sizes


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    seed=st.integers(0, 5),
    start=st.integers(0, 200),
    length=st.integers(1, 60),
)
def test_every_stretch_has_equal_shares_of_all_classes(counts: list[int], seed: int, start: int, length: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    order = balanced(labels, len(labels), seed)
    assert sorted(order) == list(range(len(labels)))
    stretch = labels[order[start : start + length]]
    for label, count in enumerate(counts):
        expected = len(stretch) * count / len(labels)
        # each class has its own jitter of one place at each end
        assert abs(np.count_nonzero(stretch == label) - expected) <= 2 + len(counts) * count / len(labels)


@pytest.mark.parametrize("labels", [None, np.arange(100) % 7])
def test_the_order_is_of_the_seed(labels: np.ndarray | None) -> None:
    orders = [balanced(labels, 100, seed).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_efforts_take_the_same_blocks() -> None:
    labels = np.arange(300) % 10
    full, normal, quick = (positions(labels, 300, effort, 0) for effort in ("full", "normal", "quick"))  # type: ignore[arg-type]
    assert [block.tolist() for block in full] == [list(range(300))]
    assert [block.tolist() for block in quick] == [normal[0].tolist()]
    assert sorted(np.concatenate(normal).tolist()) == list(range(300))
    assert all(block.tolist() == sorted(block.tolist()) for block in normal)
