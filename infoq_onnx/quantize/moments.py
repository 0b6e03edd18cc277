"""First and second moments of a layer's inputs and targets: the only image data that fitting and rounding need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infoq_onnx.errors import ModelError, setting

Array = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

HALVES = 2
"""Images are summed in two halves, so that a fit to one half can be validated on the other."""


@dataclass(frozen=True)
class Statistics:
    """Moments of inputs x [d] and targets t [R] for each of G groups.

    Means are over positions, weighted by how much an error at each position matters.
    """

    count: int
    """Number of positions with a weight above 0."""
    input_mean: Array
    """x̄ [G, d]"""
    target_mean: Array
    """t̄ [G, R]"""
    second: Array
    """H = E[(x − x̄)(x − x̄)ᵀ] [G, d, d]; E[xxᵀ] where the layer has no bias."""
    cross: Array
    """K = E[(t − t̄)(x − x̄)ᵀ] [G, R, d]; E[txᵀ] where the layer has no bias."""


class Moments:
    """Moments accumulated in float64, batch by batch.

    Values are summed relative to the first batch's means. Without this, a small variance would be the difference of two
    large sums and be lost in their rounding errors, and a constant input would appear to vary.

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
        """Number of positions added with a weight above 0."""
        return sum(self._counts)

    def add(self, columns: Float32, targets: Float32, half: int = 0, weights: Float32 | None = None) -> None:
        """Add a batch.

        Parameters
        ----------
        columns : inputs [G, p, d]
        targets : targets [G, p, R]
        half : half of the images that the batch belongs to, 0 or 1
        weights : weights of the positions [p]; None weights all by 1
        """
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
        # products and sums within a batch are in float32 for speed; batches are summed in float64
        # overflow is reported when the moments are read
        with np.errstate(over="ignore", invalid="ignore"):
            self._x[half] += positions @ from_x
            self._t[half] += positions @ from_t
            if weights is not None:
                roots = np.sqrt(weights)[:, None]
                from_x, from_t = from_x * roots, from_t * roots
            self._xx[half] += np.matmul(from_x.transpose(0, 2, 1), from_x)
            self._tx[half] += np.matmul(from_t.transpose(0, 2, 1), from_x)

    def means(self) -> tuple[Array, Array]:
        """Return the means x̄ [G, d] and t̄ [G, R] over all positions."""
        x, t = self._offsets(slice(None))
        return self._x_origin + x, self._t_origin + t

    def all(self, *, centred: bool) -> Statistics:
        """Return the moments over all positions.

        Parameters
        ----------
        centred : whether second moments are about the means or about 0

        Raises
        ------
        ModelError
            The moments exceed float32.
        """
        return self._statistics(slice(None), centred)

    def halves(self, *, centred: bool) -> tuple[Statistics, Statistics] | None:
        """Return the moments of each half; None where one half is empty. See `all`."""
        if not all(self._counts):
            return None
        return self._statistics(slice(0, 1), centred), self._statistics(slice(1, 2), centred)

    def _statistics(self, part: slice, centred: bool) -> Statistics:
        if not (np.isfinite(self._xx[part]).all() and np.isfinite(self._tx[part]).all()):
            raise ModelError(
                "the inputs are so large that their squares exceed float32; scale the weights or the inputs, check the "
                f"preprocessing, or give {setting('trial_rounding')} nearest (in allocate: {setting('rounding')} "
                "nearest)"
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
        """Return the means relative to the first batch's means."""
        weight = self._weights[part].sum()
        return self._x[part].sum(axis=0) / weight, self._t[part].sum(axis=0) / weight


def _outer(left: Array, right: Array) -> Array:
    """Return the outer product [G, m, n] of [G, m] and [G, n] per group."""
    return left[:, :, None] * right[:, None, :]
