"""More bits never score worse after the repair."""

from __future__ import annotations

from infoq_onnx.allocation.monotone import monotone


def test_running_minimum_over_fewer_bits() -> None:
    scores = {"a": {4: 0.1, 2: 0.5, 3: 0.7, 6: 0.2, 8: 0.0}, "b": {}}
    assert monotone(scores) == {"a": {2: 0.5, 3: 0.5, 4: 0.1, 6: 0.1, 8: 0.0}, "b": {8: 0.0}}


def test_baseline_scores_zero_unless_fewer_bits_do_better() -> None:
    assert monotone({"a": {2: 0.5, 3: -0.1}}) == {"a": {2: 0.5, 3: -0.1, 8: -0.1}}


def test_input_is_left_alone_and_widths_ascend() -> None:
    scores = {"a": {8: 0.0, 3: 1.0, 2: 0.5}}
    assert list(monotone(scores)["a"]) == [2, 3, 8]
    assert scores == {"a": {8: 0.0, 3: 1.0, 2: 0.5}}
