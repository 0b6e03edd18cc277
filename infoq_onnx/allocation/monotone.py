"""Repair of scores that noise made non-monotone."""

from __future__ import annotations

from collections.abc import Mapping

from infoq_onnx.schema import BASELINE_BITS


def monotone(scores: Mapping[str, Mapping[int, float]]) -> dict[str, dict[int, float]]:
    """Make more bits never score worse: S(b) becomes the minimum of S(b') over b' ≤ b (docs/methods.md).

    Parameters
    ----------
    scores : mapping of str to mapping of int to float
        Score by bits, by unit. The baseline of 8 bits scores 0 where it is left out.

    Returns
    -------
    dict of str to dict of int to float
        The same units, widths ascending, 8 among them.
    """
    repaired: dict[str, dict[int, float]] = {}
    for unit, by_bits in scores.items():
        lowest = float("inf")
        repaired[unit] = {}
        for bits, score in sorted({BASELINE_BITS: 0.0, **by_bits}.items()):
            lowest = min(lowest, score)
            repaired[unit][bits] = lowest
    return repaired
