"""Bounds on the size of the whole file, not only of its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from infoq_onnx.allocation.costs import Budget
from infoq_onnx.allocation.solve import without
from infoq_onnx.allocation.units import format_quantity
from infoq_onnx.errors import InfeasibleBudgetError, enumerated, setting
from infoq_onnx.pipeline.emitting import Emission
from infoq_onnx.schema import Allocation, Bound

_SMALL_FILE = 2**18
"""Bytes below which fewer widths, and so fewer functions, are tried as well."""
_DIGITS = 32
"""Additional bytes that the text and digits of another limit may take in the file."""

Weights = Mapping[str, Collection[int]]
"""Layer → bits that its weights may have."""


class Decide(Protocol):
    """A function that solves the integer program."""

    def __call__(self, within: tuple[Budget, ...], weights: Weights | None = None) -> Allocation:
        """Return the best allocation within the bounds, with the weights restricted to `weights`, if given."""


@dataclass(frozen=True)
class Choosing:
    """A choice of bits."""

    weights: Mapping[str, Sequence[int]]
    """Layer → bits that its weights can have, ascending."""
    decide: Decide
    """Function that chooses among them."""
    pins: Sequence[str] = ()
    """The pins, as written by the user."""

    @property
    def widths(self) -> list[int]:
        """All bits that weights can have, ascending."""
        return sorted({width for bits in self.weights.values() for width in bits})

    def near(self, width: int) -> dict[str, tuple[int]]:
        """Restrict each layer to the one choice that is next to a bit-width."""
        return {layer: (min(bits, key=lambda each: abs(each - width)),) for layer, bits in self.weights.items()}

    def up_to(self, width: int) -> dict[str, Sequence[int]]:
        """Restrict each layer to choices of at most a bit-width. Pins, and layers without such a choice, are wider."""
        return {layer: [each for each in bits if each <= width] or bits[:1] for layer, bits in self.weights.items()}


def within_file(
    emission: Emission, bounds: tuple[Budget, ...], choosing: Choosing, unpinned: Choosing | None = None
) -> Allocation:
    """Choose an allocation so that absolute bounds on the size hold for the whole file.

    Names, scales and biases take the same space at any bits. The functions that unpack each bit-width, the origins of
    levels at few bits, and the allocation in the metadata depend on the bits. The function therefore measures this
    overhead and solves the program again until the file fits. If the file never fits, the function tries fewer
    bit-widths, which need fewer unpacking functions, and in the end the smallest file.

    Parameters
    ----------
    emission : builds the file
    bounds : bounds given by the user
    choosing : choice of bits
    unpinned : the same without pins, to say whether dropping them helps; None if there are none

    Returns
    -------
    Allocation

    Raises
    ------
    InfeasibleBudgetError
        The smallest file found is too large. The message states its size.
    """
    sizes = [budget for budget in bounds if is_absolute(budget.bound)]
    if not sizes:
        return choosing.decide(bounds)
    others = _without_sizes(bounds)
    # bounds that cannot be met whatever the file are told as such
    roomy: Allocation | None = choosing.decide(others)
    # in a small file the functions of some widths take more room than they are worth
    is_small = any(budget.bound.limit < _SMALL_FILE for budget in sizes)
    found: list[Allocation] = []
    for widest in reversed(choosing.widths):
        try:
            found.append(_fitted(emission, bounds, choosing.decide, choosing.up_to(widest), roomy))
        except InfeasibleBudgetError:
            continue
        finally:
            roomy = None
        if not is_small:
            break
    if not found:
        found.append(_smallest_fitted(emission, bounds, choosing, unpinned))
    return min(found, key=lambda allocation: allocation.score)


def _fitted(
    emission: Emission,
    bounds: tuple[Budget, ...],
    decide: Decide,
    weights: Weights,
    roomy: Allocation | None = None,
) -> Allocation:
    """Choose among restricted weights so that the file is within the bounds.

    `roomy` is what is chosen without bounds on the size; None: it is computed.
    """
    overhead = emission.overhead(roomy or decide(_without_sizes(bounds), weights))
    while True:
        allocation = decide(_with_room(bounds, overhead), weights)
        needed = emission.overhead(allocation)
        if needed <= overhead:
            return allocation
        # the overhead only grows, so the loop ends
        overhead = max(needed, overhead + 8)


def _smallest_fitted(
    emission: Emission, bounds: tuple[Budget, ...], choosing: Choosing, unpinned: Choosing | None
) -> Allocation:
    """Choose the smallest file, or say how large it is."""
    smallest = _smallest(emission, bounds, choosing)
    try:
        return _fitted(emission, bounds, choosing.decide, _as_in(smallest))
    except InfeasibleBudgetError as error:
        needed = emission.overhead(smallest) + _DIGITS
        ways: list[str] = []
        if unpinned is not None and _fits_at_all(emission, bounds, unpinned):
            ways += without(choosing.pins)
        ways += _other_ways(emission, bounds, choosing)
        size = smallest.costs.weight_bytes
        tight = [budget for budget in bounds if is_absolute(budget.bound) and size + needed > budget.bound.limit]
        told = "; ".join(
            f"{setting('size')} {budget.bound.text} cannot be met: the smallest reachable is "
            f"{format_quantity(size + needed, budget.metric.suffixes, up=True)}"
            for budget in tight
        )
        widths = enumerated([str(width) for width in sorted({*smallest.weight_bits.values()})])
        pinned = f", with the pins {' '.join(choosing.pins)}" if choosing.pins else ""
        raise InfeasibleBudgetError(
            f"{told} (weights at {widths} bits{pinned}); {enumerated(['loosen the budget', *ways], 'or')}",
            {"size": size},
            tuple(ways),
        ) from error


def _smallest(emission: Emission, bounds: tuple[Budget, ...], choosing: Choosing) -> Allocation:
    """Return the allocation with the smallest file that is within all other bounds.

    The narrowest weights need not be the smallest file: each width has its functions, and the weights of a small layer
    may take less room than the nodes that unpack them. Files of about one width are tried, and in the smallest of them
    each layer at its widest.
    """
    # with the text that the limit takes in the file
    texts = tuple(budget.bound for budget in _with_room(bounds, 0))
    others = _without_sizes(bounds)

    def tried(weights: Weights) -> Iterator[Allocation]:
        try:
            yield dataclasses.replace(choosing.decide(others, weights), bounds=texts)
        except InfeasibleBudgetError:
            return

    def file_bytes(allocation: Allocation) -> float:
        return allocation.costs.weight_bytes + emission.overhead(allocation)

    best, least = None, 0.0
    for width in choosing.widths:
        for allocation in tried(choosing.near(width)):
            if best is None or file_bytes(allocation) < least:
                best, least = allocation, file_bytes(allocation)
    assert best is not None, "the narrowest weights meet all bounds that can be met"
    if least >= _SMALL_FILE:
        return best
    for layer, bits in choosing.weights.items():
        if bits[-1] != best.weight_bits[layer]:
            for allocation in tried({**_as_in(best), layer: bits[-1:]}):
                if file_bytes(allocation) < least:
                    best, least = allocation, file_bytes(allocation)
    return best


def _fits_at_all(emission: Emission, bounds: tuple[Budget, ...], choosing: Choosing) -> bool:
    try:
        within_file(emission, bounds, choosing)
    except InfeasibleBudgetError:
        return False
    return True


def _other_ways(emission: Emission, bounds: tuple[Budget, ...], choosing: Choosing) -> tuple[str, ...]:
    """Return by what other scores the file could fit, as far as the narrowest weights tell."""
    narrowest = choosing.decide(_without_sizes(bounds), choosing.up_to(0))
    try:
        choosing.decide(_with_room(bounds, emission.overhead(narrowest) + _DIGITS))
    except InfeasibleBudgetError as error:
        return error.ways
    return ()


def _as_in(allocation: Allocation) -> dict[str, tuple[int]]:
    """Restrict weights to those of an allocation."""
    return {layer: (width,) for layer, width in allocation.weight_bits.items()}


def _without_sizes(bounds: tuple[Budget, ...]) -> tuple[Budget, ...]:
    return tuple(budget for budget in bounds if not is_absolute(budget.bound))


def _with_room(bounds: tuple[Budget, ...], overhead: float) -> tuple[Budget, ...]:
    """Return the bounds with an overhead on sizes."""
    return tuple(
        dataclasses.replace(budget, bound=dataclasses.replace(budget.bound, overhead=overhead))
        if is_absolute(budget.bound)
        else budget
        for budget in bounds
    )


def is_absolute(bound: Bound) -> bool:
    """Return whether a bound limits the size in bytes, and not by the size at uniform bits."""
    return bound.metric == "size" and not bound.text.strip().lower().startswith("uniform")
