"""A bound on the size that holds for the file, and not for its weights alone."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from infoq_onnx.errors import InfeasibleBudgetError, SettingsError
from infoq_onnx.pipeline.emitting import Emission
from infoq_onnx.schema import BASELINE_BITS, Allocation, Bound

_SOLVES = 8
"""Times that a program is solved for a file of a given size; two or three are enough in practice."""


class Decide(Protocol):
    """Solves the program."""

    def __call__(self, within: tuple[Bound, ...], widest_weight: int = BASELINE_BITS) -> Allocation:
        """Return the best allocation within some bounds."""


def within_file(emission: Emission, bounds: tuple[Bound, ...], narrowest: int, decide: Decide) -> Allocation:
    """Decide so that absolute bounds on the size hold for the file.

    Names, scales and biases take the same room whatever the bits, but for the functions that unpack each width and for
    the allocation in the metadata. So the room is measured and the program solved again until it was enough.

    Parameters
    ----------
    emission : what the file will be made of
    bounds : as the user gave them
    narrowest : fewest bits that were analysed
    decide : solves the program

    Raises
    ------
    InfeasibleBudgetError
        Not even the smallest file is small enough; the message says how large it is.
    """
    others = tuple(bound for bound in bounds if not _is_absolute(bound))
    if len(others) == len(bounds):
        return decide(bounds)

    def with_room(overhead: float) -> tuple[Bound, ...]:
        return tuple(
            dataclasses.replace(bound, overhead=overhead) if _is_absolute(bound) else bound for bound in bounds
        )

    overhead = emission.overhead(decide(others))
    try:
        for _ in range(_SOLVES):
            allocation = decide(with_room(overhead))
            needed = emission.overhead(allocation)
            if needed <= overhead:
                return allocation
            overhead = needed
    except InfeasibleBudgetError as error:
        # files with one width have one function in them: the smallest file may be smaller than these
        try:
            smallest = decide(others, narrowest)
        except SettingsError:
            raise error from None
        return decide(with_room(emission.overhead(smallest)), narrowest)
    return allocation


def _is_absolute(bound: Bound) -> bool:
    return bound.metric == "size" and not bound.text.strip().lower().startswith("uniform")
