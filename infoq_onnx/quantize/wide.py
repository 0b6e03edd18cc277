"""Wide layers: layers with so many inputs that a d × d matrix would not fit memory, such as a Gemm after a Flatten.

For a wide layer, H = E[(x − x̄)(x − x̄)ᵀ] is never built. H has d² entries, but its rank is at most the number p of
positions seen, and p is small: a Gemm sees one position per image. The inputs themselves are kept instead, as X [p, d],
scaled so that H = XᵀX. With the residual of the float weights E = T − XWᵀ and G = XXᵀ [p, p]:

- Fit: W' = (K + λW)(H + λI)⁻¹ = W + Eᵀ(G + λI)⁻¹X. Cross-validation of λ works the same way.
- GPTQ: let B be the block of columns to round, and S all columns not rounded yet, including B. The inverse of H + μI
  restricted to S is (I − X_Sᵀ M⁻¹ X_S)/μ with M = X_S X_Sᵀ + μI. Only its rows and columns in B are needed. After B is
  rounded, X_B X_Bᵀ is subtracted from M.
- Descent: a product with H is a product with X followed by one with Xᵀ.

These are exact identities (Woodbury), so a layer is rounded as by `quantize.least_squares`, `gptq` and `descend`,
with two exceptions: positions beyond `most_positions` are dropped, and the descent makes fewer sweeps where it would
take too long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import scipy.linalg
from numba import prange

from infoq_onnx.jit import compiled_parallel
from infoq_onnx.quantize.coordinate_descent import SWEEPS
from infoq_onnx.quantize.damping import CANDIDATES, DAMPING, rounding_damping
from infoq_onnx.quantize.gptq import round_block
from infoq_onnx.quantize.levels import Levels

Array = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

WIDE = 4608
"""Layers with more inputs than this are wide; a 3×3 convolution of 512 channels has exactly this many."""
_COLUMN_BYTES = 256 * 2**20
"""Maximum bytes for the kept inputs of all positions."""
CHUNK_BYTES = 64 * 2**20
"""Maximum bytes for one chunk of rows of float64 weights."""
_BLOCK = 512
"""Number of columns that GPTQ rounds before it spreads their errors."""
_WORK = 10**11
"""Maximum multiplications of the descent; it makes at least one sweep."""


def is_wide(groups: int, width: int) -> bool:
    """Return whether a layer keeps its inputs instead of their moments.

    Parameters
    ----------
    groups : number of groups; layers with several groups are never wide
    width : number of inputs d of a row
    """
    return groups == 1 and width > WIDE


def most_positions(width: int) -> int:
    """Return the maximum number of positions kept for a layer with `width` inputs."""
    return max(16, _COLUMN_BYTES // (4 * width))


class Columns:
    """Inputs and targets of a wide layer, collected batch by batch; every k-th position where there are too many.

    Parameters
    ----------
    width, rows : d and R of `quantize.im2col`; there is one group
    total : number of positions that will be added
    """

    def __init__(self, width: int, rows: int, total: int) -> None:
        self.width, self.rows = width, rows
        self._every = -(-total // most_positions(width))
        self._added = 0
        self._parts: list[tuple[Float32, Float32, Float32, npt.NDArray[np.int64]]] = []

    def add(self, columns: Float32, targets: Float32, half: int = 0, weights: Float32 | None = None) -> None:
        """Add a batch.

        Parameters
        ----------
        columns : inputs [1, p, d]
        targets : targets [1, p, R]
        half : half of the images that the batch belongs to, 0 or 1
        weights : weights of the positions [p]; None weights all by 1
        """
        count = columns.shape[1]
        given = np.ones(count, dtype=np.float32) if weights is None else weights
        kept = ((self._added + np.arange(count)) % self._every == 0) & (given > 0)
        self._added += count
        halves = np.full(int(kept.sum()), half, dtype=np.int64)
        self._parts.append((columns[0, kept], targets[0, kept], given[kept], halves))

    def joined(self) -> tuple[Float32, Float32, Array, npt.NDArray[np.int64]]:
        """Return inputs [p, d], targets [p, R], weights [p] and halves [p] of all kept positions."""
        columns, targets, weights, halves = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        self._parts = [(columns, targets, weights, halves)]
        return columns, targets, weights.astype(np.float64), halves

    def means(self) -> tuple[Array, Array]:
        """Return the weighted means x̄ [1, d] and t̄ [1, R] of all kept positions."""
        columns, targets, weights, _ = self.joined()
        shares = weights / weights.sum()
        return _weighted(shares, columns)[None], _weighted(shares, targets)[None]


class WideLayer:
    """A wide layer to be rounded, with the interface that `quantize.rounding` expects.

    Parameters
    ----------
    weight : weights [1, R, d], any float type
    columns : the layer's quantized inputs and its targets
    centred : whether to subtract the means, because a bias corrects them later
    exact_input : see `quantize.least_squares`
    """

    def __init__(
        self, weight: npt.NDArray[np.floating], columns: Columns, *, centred: bool, exact_input: bool = False
    ) -> None:
        self._weight = weight[0]
        inputs, targets, weights, halves = columns.joined()
        if centred:
            x_mean, t_mean = columns.means()
            inputs, targets = inputs - x_mean[0].astype(np.float32), targets - t_mean[0].astype(np.float32)
        count, width = inputs.shape
        gram = np.zeros((count, count))
        for start in range(0, width, _BLOCK):
            part = inputs[:, start : start + _BLOCK].astype(np.float64)
            gram += part @ part.T
        roots = np.sqrt(weights / weights.sum())
        self._gram = _scaled(gram, roots)
        self._correction: Array | None = None
        if not exact_input:
            left = targets.astype(np.float64)
            for start in range(0, width, _BLOCK):
                here = slice(start, start + _BLOCK)
                left -= inputs[:, here].astype(np.float64) @ self._weight[:, here].astype(np.float64).T
            damping = _cross_validated(gram, left, weights, halves, width, centred)
            damped = self._gram + _strength(self._gram, damping, width) * np.eye(count)
            solved = scipy.linalg.solve(damped, roots[:, None] * left, assume_a="pos")
            self._correction = np.asarray(solved.T, dtype=np.float64)
        self._mu = _strength(self._gram, rounding_damping(width, count), width)
        # [d, p]: the values of one input are contiguous
        self._inputs = np.ascontiguousarray((inputs * roots[:, None].astype(np.float32)).T)
        self.diagonal: Array = (np.einsum("dp,dp->d", self._inputs, self._inputs, dtype=np.float64) + self._mu)[None]
        """Diagonal of H + μI, [1, d]."""

    def chunks(self) -> Iterator[slice]:
        """Yield the slices of rows to round at a time."""
        step = max(1, CHUNK_BYTES // (8 * self._weight.shape[1]))
        for start in range(0, len(self._weight), step):
            yield slice(start, start + step)

    def fitted(self, rows: slice) -> Array:
        """Return the rows `rows` of W', [1, r, d]."""
        found = self._weight[rows].astype(np.float64)
        if self._correction is not None:
            found += self._correction[rows] @ self._inputs.T
        return np.asarray(found[None], dtype=np.float64)

    def round(self, fitted: Array, levels: Levels) -> Array:
        """Round some rows with error compensation; see `quantize.gptq`.

        Parameters
        ----------
        fitted : rows of W' [1, r, d]
        levels : levels of these rows [1, r]

        Returns
        -------
        float64 array [1, r, d]
            Codes in steps.
        """
        count = len(self._gram)
        order = np.argsort(-self.diagonal[0], kind="stable")
        remaining = self._gram + self._mu * np.eye(count)
        spread = np.zeros((fitted.shape[1], count))
        codes = np.empty_like(fitted)
        for start in range(0, len(order), _BLOCK):
            block = order[start : start + _BLOCK]
            inputs = self._inputs[block].astype(np.float64)
            solved = scipy.linalg.cho_solve(scipy.linalg.cho_factor(remaining), inputs.T)
            inverse: Array = (np.eye(len(block)) - inputs @ solved) / self._mu
            upper = np.asarray(np.linalg.cholesky(inverse).T, dtype=np.float64)
            left = fitted[:, :, block] + spread @ inputs.T
            codes[:, :, block], errors = round_block(left, upper[None], levels)
            # the correction of all later columns is a product with X; it is applied when their block is rounded
            weighed = scipy.linalg.solve_triangular(upper, errors[0].T)
            spread += (solved @ weighed).T / self._mu
            remaining -= inputs.T @ inputs
        return codes

    def descend(self, fitted: Array, codes: Array, levels: Levels) -> tuple[Array, Levels]:
        """Improve the codes and scales of some rows; see `quantize.coordinate_descent`.

        Parameters
        ----------
        fitted : rows of W' [1, r, d]
        codes : initial codes in steps [1, r, d]
        levels : levels of these rows [1, r]

        Returns
        -------
        codes : float64 array [1, r, d]
            Improved codes in steps.
        levels : Levels
            Improved scales.
        """
        sweeps = int(np.clip(_WORK // max(1, self._inputs.size * len(self._weight)), 1, SWEEPS))
        found, scales = codes[0].copy(), levels.scales[0].copy()
        goal, made = fitted[0] @ self._inputs, found @ self._inputs
        _descend(
            fitted[0], self._inputs, goal, found, made, scales, levels.lowest[0], float(levels.count - 1),
            self._mu, self.diagonal[0], sweeps,
        )  # fmt: skip
        return found[None], replace(levels, scales=scales[None])


def _weighted(shares: Array, values: Float32) -> Array:
    """Return Σ share · value [n] in float64, from shares [p] and values [p, n], in chunks of positions."""
    total = np.zeros(values.shape[1])
    for start in range(0, len(values), _BLOCK):
        total += shares[start : start + _BLOCK] @ values[start : start + _BLOCK].astype(np.float64)
    return total


def _scaled(gram: Array, roots: Array) -> Array:
    """Scale the Gram matrix [p, p] of the inputs by the square roots of the positions' shares, so that H = XᵀX."""
    return np.asarray(roots[:, None] * gram * roots, dtype=np.float64)


def _strength(scaled: Array, damping: float, width: int) -> float:
    """Return the absolute λ or μ for a share of the mean of H's diagonal."""
    found = damping * float(np.trace(scaled)) / width
    # see `quantize.damping.damped`
    return found if found > 0 else 1.0


def _cross_validated(
    gram: Array, left: Array, weights: Array, halves: npt.NDArray[np.int64], width: int, centred: bool
) -> float:
    """Choose λ, as a share of the mean of H's diagonal, by two-fold cross-validation; see `quantize.least_squares`."""
    sides = [np.flatnonzero(halves == half) for half in (0, 1)]
    if any(len(side) == 0 for side in sides):
        return DAMPING
    # matrices that subtract the means of a half and weight its positions
    takes = []
    for side in sides:
        shares = weights[side] / weights[side].sum()
        means = np.tile(shares, (len(side), 1)) if centred else 0.0
        takes.append(np.sqrt(shares)[:, None] * (np.eye(len(side)) - means))
    errors = np.zeros(len(CANDIDATES))
    for known, unknown in ((0, 1), (1, 0)):
        inner = takes[known] @ gram[np.ix_(sides[known], sides[known])] @ takes[known].T
        across = takes[unknown] @ gram[np.ix_(sides[unknown], sides[known])] @ takes[known].T
        wanted, others = takes[known] @ left[sides[known]], takes[unknown] @ left[sides[unknown]]
        for index, damping in enumerate(CANDIDATES):
            damped = inner + _strength(inner, damping, width) * np.eye(len(inner))
            errors[index] += np.sum(np.square(others - across @ scipy.linalg.solve(damped, wanted, assume_a="pos")))
    return CANDIDATES[int(np.argmin(errors))]


@compiled_parallel
def _descend(
    weight: Array,
    inputs: Float32,
    goal: Array,
    codes: Array,
    made: Array,
    scales: Array,
    lowest: Array,
    last: float,
    mu: float,
    diagonal: Array,
    sweeps: int,
) -> None:
    """Improve `codes` [r, d] and `scales` [r] in place; `inputs` is Xᵀ [d, p], `goal` is wXᵀ, `made` is qXᵀ, [r, p]."""
    rows, width = codes.shape
    count = inputs.shape[1]
    for r in prange(rows):
        value, code, wanted, found, low = weight[r], codes[r], goal[r], made[r], lowest[r]
        for _ in range(sweeps):
            # wᵀHq and qᵀHq
            cross, square = 0.0, 0.0
            for i in range(count):
                cross += wanted[i] * found[i]
                square += found[i] * found[i]
            for j in range(width):
                cross += mu * value[j] * code[j]
                square += mu * code[j] * code[j]
            if cross > 0.0 and square > 0.0:
                scales[r] = cross / square
            scale = scales[r]
            changed = False
            for j in range(width):
                slope = mu * (value[j] / scale - code[j])
                column = inputs[j]
                for i in range(count):
                    slope += column[i] * (wanted[i] / scale - found[i])
                step = min(max(np.rint(code[j] + slope / diagonal[j] - low), 0.0), last) + low - code[j]
                if step != 0.0:
                    code[j] += step
                    changed = True
                    for i in range(count):
                        found[i] += step * column[i]
            if not changed:
                break
