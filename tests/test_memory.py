"""Memory usage of this process."""

from __future__ import annotations

import numpy as np

from infoq_onnx.memory import forget_peak, peak, release, resident

LARGE = 200 * 2**20


def test_the_peak_is_forgotten() -> None:
    before = resident()
    assert np.ones(LARGE, np.uint8).sum() == LARGE
    assert peak() >= before + 0.9 * LARGE
    forget_peak()
    assert peak() < before + 0.5 * LARGE
    assert np.ones(LARGE, np.uint8).sum() == LARGE
    assert peak() >= before + 0.9 * LARGE


def test_free_memory_is_given_back() -> None:
    """Small blocks are taken from the heap; one that stays behind them keeps the C library from giving them back."""
    release()
    before = resident()
    blocks = [bytes(1000) for _ in range(200_000)]
    last = bytes(1000)
    assert resident() > before + 150e6
    del blocks
    release()
    assert resident() < before + 50e6
    assert len(last) == 1000
