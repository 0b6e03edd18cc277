"""First and second moments of a layer's inputs and targets: all that fitting and rounding it need to know of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infoq_onnx.errors import ModelError

Array = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

HALVES = 2
"""Images are summed in two halves, so that a fit to one half can be tried on the other."""


@dataclass(frozen=True)
class Statistics:
    """Moments of some images. With inputs x [d] and targets t [R] of each of G groups, means are over positions.

    They are weighted, by how much an error at a position matters.
    """

    count: int
    """Positions of a weight above 0."""
    input_mean: Array
    """x̄ [G, d]"""
    target_mean: Array
    """t̄ [G, R]"""
    second: Array
    """H = E[(x − x̄)(x − x̄)ᵀ] [G, d, d]; about 0 instead of the means where a layer has no bias."""
    cross: Array
    """K = E[(t − t̄)(x − x̄)ᵀ] [G, R, d]; likewise."""


class Moments:
    """Sums in float64 as batches stream by.

    What is summed is the distance from the first batch's means. A variance found as the difference of two large sums
    would drown in their rounding, and a constant would seem to vary.

    Parameters
    ----------
    groups, width, rows : G, d and R of `quantize.im2col`
    """

    def __init__(self, groups: int, width: int, rows: int) -> None:
        self._counts = [0] * HALVES
        self._weights = np.zeros(HALVES)
        self._x_origin = np.zeros((groups, width), dtype=np.float32)
        self._t_origin = np.zeros((groups, rows), dtype=np.float32)
        self._x = np.zeros((HALVES, groups, width))
        self._t = np.zeros((HALVES, groups, rows))
        self._xx = np.zeros((HALVES, groups, width, width))
        self._tx = np.zeros((HALVES, groups, rows, width))

    @property
    def count(self) -> int:
        """Positions added."""
        return sum(self._counts)

    def add(self, columns: Float32, targets: Float32, half: int = 0, weights: Float32 | None = None) -> None:
        """Add a batch to one of the halves: columns [G, p, d], targets [G, p, R], weights [p] of the positions or 1."""
        positions = np.ones(columns.shape[1], dtype=np.float32) if weights is None else weights
        counted = int(np.count_nonzero(positions))
        if counted == 0:
            return
        if self.count == 0:
            self._x_origin = columns.mean(axis=1, dtype=np.float64).astype(np.float32)
            self._t_origin = targets.mean(axis=1, dtype=np.float64).astype(np.float32)
        self._counts[half] += counted
        self._weights[half] += np.sum(positions, dtype=np.float64)
        from_x, from_t = columns - self._x_origin[:, None], targets - self._t_origin[:, None]
        # products and sums of one batch in float32, at the speed of the machine; batches are summed in float64
        # what overflows is told when the moments are asked for
        with np.errstate(over="ignore", invalid="ignore"):
            self._x[half] += positions @ from_x
            self._t[half] += positions @ from_t
            if weights is not None:
                roots = np.sqrt(weights)[:, None]
                from_x, from_t = from_x * roots, from_t * roots
            self._xx[half] += np.matmul(from_x.transpose(0, 2, 1), from_x)
            self._tx[half] += np.matmul(from_t.transpose(0, 2, 1), from_x)

    def means(self) -> tuple[Array, Array]:
        """x̄ [G, d] and t̄ [G, R] of all that was added."""
        x, t = self._offsets(slice(None))
        return self._x_origin + x, self._t_origin + t

    def all(self, *, centred: bool) -> Statistics:
        """Moments of all that was added; second moments about the means, or about 0.

        Raises
        ------
        ModelError
            They exceed float32.
        """
        return self._statistics(slice(None), centred)

    def halves(self, *, centred: bool) -> tuple[Statistics, Statistics] | None:
        """Moments of each half, or None where one is empty."""
        if not all(self._counts):
            return None
        return self._statistics(slice(0, 1), centred), self._statistics(slice(1, 2), centred)

    def _statistics(self, part: slice, centred: bool) -> Statistics:
        if not (np.isfinite(self._xx[part]).all() and np.isfinite(self._tx[part]).all()):
            raise ModelError(
                "a layer's inputs are so large that their squares exceed float32; scale the weights or the inputs, "
                "check the preprocessing, or round to nearest"
            )
        count, weight = sum(self._counts[part]), self._weights[part].sum()
        x, t = self._offsets(part)
        second: Array = self._xx[part].sum(axis=0) / weight - _outer(x, x)
        cross: Array = self._tx[part].sum(axis=0) / weight - _outer(t, x)
        input_mean: Array = self._x_origin + x
        target_mean: Array = self._t_origin + t
        if not centred:
            second = second + _outer(input_mean, input_mean)
            cross = cross + _outer(target_mean, input_mean)
        return Statistics(count, input_mean, target_mean, second, cross)

    def _offsets(self, part: slice) -> tuple[Array, Array]:
        """Means of the distances from the first batch's means."""
        weight = self._weights[part].sum()
        return self._x[part].sum(axis=0) / weight, self._t[part].sum(axis=0) / weight


def _outer(left: Array, right: Array) -> Array:
    """Products [G, m, n] of all pairs of [G, m] and [G, n]."""
    return left[:, :, None] * right[:, None, :]
