"""Memory usage of this process."""

from __future__ import annotations

import numpy as np

from infoq_onnx.memory import forget_peak, peak, resident

LARGE = 200 * 2**20


def test_the_peak_is_forgotten() -> None:
    before = resident()
    assert np.ones(LARGE, np.uint8).sum() == LARGE
    assert peak() >= before + 0.9 * LARGE
    forget_peak()
    assert peak() < before + 0.5 * LARGE
    assert np.ones(LARGE, np.uint8).sum() == LARGE
    assert peak() >= before + 0.9 * LARGE
