"""Solvers of the integer program, by name.

The narrowest choices of the given program must meet all limits; otherwise the program is infeasible, because more bits
never lower a total. A solver returns choices that meet all limits exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from infoq_onnx.allocation.program import Outcome, Program
from infoq_onnx.allocation.solvers.brute import solve_brute
from infoq_onnx.allocation.solvers.highs import solve_highs


class Solver(Protocol):
    """A function that solves the program."""

    def __call__(self, program: Program, time_limit: float | None) -> Outcome:
        """Return the choices with the lowest score, or the best choices found within `time_limit` seconds."""


SOLVERS: Mapping[str, Solver] = {"highs": solve_highs, "brute": solve_brute}
