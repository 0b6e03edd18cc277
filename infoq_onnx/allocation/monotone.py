"""Repair of scores that are not monotone because of noise."""

from __future__ import annotations

from collections.abc import Mapping

from infoq_onnx.schema import BASELINE_BITS


def monotone(scores: Mapping[str, Mapping[int, float]]) -> dict[str, dict[int, float]]:
    """Make scores fall with more bits: replace S(b) by the minimum of S(b') over b' ≤ b (docs/methods.md).

    Parameters
    ----------
    scores : mapping of str to mapping of int to float
        Unit → bits → score. A missing score at 8 bits, the baseline, is 0.

    Returns
    -------
    dict of str to dict of int to float
        The same units, with ascending bit-widths that include 8.
    """
    repaired: dict[str, dict[int, float]] = {}
    for unit, by_bits in scores.items():
        lowest = float("inf")
        repaired[unit] = {}
        for bits, score in sorted({BASELINE_BITS: 0.0, **by_bits}.items()):
            lowest = min(lowest, score)
            repaired[unit][bits] = lowest
    return repaired
