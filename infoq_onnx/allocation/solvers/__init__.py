"""Solvers of the integer program: a function each, and a dict of them by name.

A solver is given a program whose narrowest choices are within all limits (more bits never lower a total, so there is
nothing to solve otherwise), and returns choices that are within them to the last integer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from infoq_onnx.allocation.program import Outcome, Program
from infoq_onnx.allocation.solvers.brute import solve_brute
from infoq_onnx.allocation.solvers.highs import solve_highs


class Solver(Protocol):
    """A way to solve the program."""

    def __call__(self, program: Program, time_limit: float | None) -> Outcome:
        """Find the choices of least score, or the best found within `time_limit` seconds."""


SOLVERS: Mapping[str, Solver] = {"highs": solve_highs, "brute": solve_brute}
