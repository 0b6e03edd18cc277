"""A bound on the size that holds for the file, and not for its weights alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from infoq_onnx.allocation.costs import Budget
from infoq_onnx.errors import InfeasibleBudgetError, InfoQError, SettingsError
from infoq_onnx.pipeline.emitting import Emission
from infoq_onnx.schema import BASELINE_BITS, Allocation, Bound

_SMALL_FILE = 2**18
"""Bytes below which fewer widths, and so fewer functions, are tried as well."""
_DIGITS = 32
"""Bytes that the text of another limit, and its digits, may take more in the file."""


class Decide(Protocol):
    """Solves the program."""

    def __call__(self, within: tuple[Budget, ...], widest_weight: int = BASELINE_BITS) -> Allocation:
        """Return the best allocation within some bounds."""


def within_file(emission: Emission, bounds: tuple[Budget, ...], bits: Sequence[int], decide: Decide) -> Allocation:
    """Decide so that absolute bounds on the size hold for the file.

    Names, scales and biases take the same room whatever the bits, but for the functions that unpack each width, the
    origins of levels at few bits, and the allocation in the metadata. So the room is measured and the program solved
    again until it was enough. Where it never is, fewer widths, and so fewer functions, may do.

    Parameters
    ----------
    emission : what the file will be made of
    bounds : as the user gave them
    bits : widths that were analysed
    decide : solves the program

    Raises
    ------
    InfeasibleBudgetError
        Not even the smallest file that was found is small enough; the message says how large it is.
    """
    others = tuple(budget for budget in bounds if not is_absolute(budget.bound))
    if len(others) == len(bounds):
        return decide(bounds)

    def with_room(overhead: float, limit: float | None = None) -> tuple[Budget, ...]:
        """Bounds that leave room in the file, and are loosened to a limit where one is given."""
        return tuple(_loosened(budget, overhead, limit) if is_absolute(budget.bound) else budget for budget in bounds)

    def smallest(error: InfeasibleBudgetError, widest: int) -> float:
        """Room that the smallest allocation needs, with what it takes to write down a limit."""
        allocation = decide(with_room(0, error.reachable["size"]), widest)
        return (
            emission.overhead(dataclasses.replace(allocation, bounds=tuple(budget.bound for budget in with_room(0))))
            + _DIGITS
        )

    def fitted(widest: int) -> Allocation:
        overhead = emission.overhead(decide(others, widest))
        while True:
            try:
                allocation = decide(with_room(overhead), widest)
            except InfeasibleBudgetError as error:
                if error.reachable.keys() != {"size"} or (needed := smallest(error, widest)) <= overhead:
                    raise
                overhead = needed
                continue
            needed = emission.overhead(allocation)
            if needed <= overhead:
                return allocation
            # it only grows, so this ends
            overhead = max(needed, overhead + 8)

    # in a small file the functions of some widths take more room than they are worth
    is_small = any(is_absolute(budget.bound) and budget.bound.limit < _SMALL_FILE for budget in bounds)
    refused: InfoQError = InfeasibleBudgetError("no width was analysed")
    found: list[Allocation] = []
    for widest in sorted({*bits, BASELINE_BITS}, reverse=True):
        try:
            found.append(fitted(widest))
        except InfeasibleBudgetError as error:
            refused = error
        except SettingsError as error:
            if widest == BASELINE_BITS:
                raise
            # a pin that is wider, or a layer that was not measured at so few bits
            if not found:
                raise refused from error
            break
        if found and not is_small:
            break
    if not found:
        raise refused
    return min(found, key=lambda allocation: allocation.score)


def _loosened(budget: Budget, overhead: float, limit: float | None) -> Budget:
    bound = dataclasses.replace(budget.bound, overhead=overhead)
    return dataclasses.replace(budget, bound=bound if limit is None else dataclasses.replace(bound, limit=limit))


def is_absolute(bound: Bound) -> bool:
    """Whether a bound is on bytes, and not on what weights of uniform bits would take."""
    return bound.metric == "size" and not bound.text.strip().lower().startswith("uniform")
