"""Bounds on the size of the whole file, not only of its weights."""

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
"""Additional bytes that the text and digits of another limit may take in the file."""


class Decide(Protocol):
    """A function that solves the integer program."""

    def __call__(self, within: tuple[Budget, ...], widest_weight: int = BASELINE_BITS) -> Allocation:
        """Return the best allocation within the bounds, with at most `widest_weight` bits per weight."""


def within_file(emission: Emission, bounds: tuple[Budget, ...], bits: Sequence[int], decide: Decide) -> Allocation:
    """Choose an allocation so that absolute bounds on the size hold for the whole file.

    Names, scales and biases take the same space at any bits. The functions that unpack each bit-width, the origins of
    levels at few bits, and the allocation in the metadata depend on the bits. The function therefore measures this
    overhead and solves the program again until the file fits. If the file never fits, the function tries fewer
    bit-widths, which need fewer unpacking functions.

    Parameters
    ----------
    emission : builds the file
    bounds : bounds given by the user
    bits : analysed bit-widths
    decide : solves the program

    Returns
    -------
    Allocation

    Raises
    ------
    InfeasibleBudgetError
        The smallest file found is too large. The message states its size.
    """
    others = tuple(budget for budget in bounds if not is_absolute(budget.bound))
    if len(others) == len(bounds):
        return decide(bounds)

    def with_room(overhead: float, limit: float | None = None) -> tuple[Budget, ...]:
        """Return the bounds with an overhead, and with another limit on the size if one is given."""
        return tuple(_loosened(budget, overhead, limit) if is_absolute(budget.bound) else budget for budget in bounds)

    def smallest(error: InfeasibleBudgetError, widest: int) -> tuple[Allocation, float]:
        """Return the smallest allocation and its overhead, including the text of a limit."""
        allocation = decide(with_room(0, error.reachable["size"]), widest)
        allocation = dataclasses.replace(allocation, bounds=tuple(budget.bound for budget in with_room(0)))
        return allocation, emission.overhead(allocation) + _DIGITS

    def fitted(widest: int) -> Allocation:
        overhead = emission.overhead(decide(others, widest))
        least: Allocation | None = None
        while True:
            try:
                allocation = decide(with_room(overhead), widest)
            except InfeasibleBudgetError as error:
                if error.reachable.keys() != {"size"}:
                    raise
                if least is not None:
                    # nothing in between fits
                    return least
                small, needed = smallest(error, widest)
                try:
                    decide(with_room(needed), widest)
                except InfeasibleBudgetError:
                    # tell a little more, as the file also holds the limit's text and name: whoever asks for the size
                    # that is told gets it
                    decide(with_room(needed + _DIGITS), widest)
                    raise
                if needed < overhead:
                    # the smallest allocation can need less room than what was tried, as it has fewer bit-widths
                    least = dataclasses.replace(small, bounds=tuple(budget.bound for budget in with_room(needed)))
                overhead = needed
                continue
            needed = emission.overhead(allocation)
            if needed <= overhead:
                return allocation
            # apart from one return to the smallest allocation, the overhead only grows, so the loop ends
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
    """Return whether a bound limits the size in bytes, and not by the size at uniform bits."""
    return bound.metric == "size" and not bound.text.strip().lower().startswith("uniform")
