"""Solution of the program by exhaustive search. It is slow and simple, and serves as a reference."""

from __future__ import annotations

import math

import numpy as np

from infoq_onnx.allocation.program import Outcome, Program
from infoq_onnx.errors import SettingsError

LARGEST = 10**7
BLOCK = 2**16


def solve_brute(program: Program, time_limit: float | None) -> Outcome:  # noqa: ARG001
    """Score every combination of choices and return the first of the best.

    Parameters
    ----------
    program : Program
        Its totals must fit int64.
    time_limit : float or None
        Ignored: the number of combinations is limited instead.

    Returns
    -------
    Outcome

    Raises
    ------
    SettingsError
        There are more than 10⁷ combinations.
    """
    shape = tuple(len(choices) for choices in program.choices)
    if (combinations := math.prod(shape)) > LARGEST:
        raise SettingsError(f"{combinations:.1e} combinations are too many for the solver brute; use highs")
    best, best_score = (0,) * len(shape), math.inf
    for start in range(0, combinations, BLOCK):
        picks = np.unravel_index(np.arange(start, min(start + BLOCK, combinations)), shape)
        bits = [np.array(choices, dtype=np.int64)[pick] for choices, pick in zip(program.choices, picks, strict=True)]
        score = np.sum([scores[pick] for scores, pick in zip(program.scores, picks, strict=True)], axis=0)
        for limit in program.limits:
            total = sum(amount * math.prod(bits[v] for v in variables) for amount, variables in limit.terms)
            for variables, costs in limit.tables:
                rows = zip(*(bits[v].tolist() for v in variables), strict=True)
                total = total + np.array([costs[row] for row in rows], dtype=np.int64)
            score = np.where(total <= limit.upper, score, math.inf)
        lowest = int(np.argmin(score))
        if score[lowest] < best_score:
            best, best_score = tuple(int(pick[lowest]) for pick in picks), float(score[lowest])
    return Outcome(best, optimal=True)
