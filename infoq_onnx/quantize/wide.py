"""Layers of so many inputs that a matrix of all pairs of them would not fit memory, such as a Gemm behind a Flatten.

Of such a layer H = E[(x − x̄)(x − x̄)ᵀ] is never made. It has d² entries, and rank p at most if p positions were seen,
which here are few: a Gemm sees one an image. So the inputs themselves are kept, X [p, d], scaled so that H = XᵀX. With
E = T − XWᵀ, what the float weights leave of the target, and G = XXᵀ [p, p]:

- fit: W' = (K + λW)(H + λI)⁻¹ = W + Eᵀ(G + λI)⁻¹X, and cross-validation of λ likewise;
- GPTQ: for a block B of columns and all that is not rounded yet, S, the inverse of H + μI restricted to S is
  (I − X_Sᵀ M⁻¹ X_S)/μ with M = X_S X_Sᵀ + μI. Only the rows and columns of B are needed of it; M loses X_B X_Bᵀ when B
  is done;
- descent: products with H are products with X, and again with Xᵀ.

These are identities (Woodbury), so that a layer is rounded as `quantize.fit`, `gptq` and `descent` would round it. What
is lost: positions beyond `most_positions`, and where the work would be too much, sweeps of the descent.
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
"""Layers of more inputs than this are wide: those of a 3×3 convolution of 512 channels."""
_COLUMN_BYTES = 256 * 2**20
"""What the inputs of all positions may take."""
CHUNK_BYTES = 64 * 2**20
"""What some rows of float64 weights may take."""
_BLOCK = 512
"""Columns that GPTQ rounds before it spreads their errors."""
_WORK = 10**11
"""Multiplications after which the descent ends, but for its first sweep."""


def is_wide(groups: int, width: int) -> bool:
    """Whether a layer's inputs are kept instead of their moments."""
    return groups == 1 and width > WIDE


def most_positions(width: int) -> int:
    """Positions of so many inputs that are kept at most."""
    return max(16, _COLUMN_BYTES // (4 * width))


class Columns:
    """Inputs and targets of a layer as batches stream by, or every so many of them.

    Parameters
    ----------
    width, rows : d and R of `quantize.im2col`; there is one group
    total : positions that will be added
    """

    def __init__(self, width: int, rows: int, total: int) -> None:
        self.width, self.rows = width, rows
        self._every = -(-total // most_positions(width))
        self._added = 0
        self._parts: list[tuple[Float32, Float32, Float32, npt.NDArray[np.int64]]] = []

    def add(self, columns: Float32, targets: Float32, half: int = 0, weights: Float32 | None = None) -> None:
        """Add a batch to one of the halves: columns [1, p, d], targets [1, p, R], weights [p] of the positions or 1."""
        count = columns.shape[1]
        given = np.ones(count, dtype=np.float32) if weights is None else weights
        kept = ((self._added + np.arange(count)) % self._every == 0) & (given > 0)
        self._added += count
        halves = np.full(int(kept.sum()), half, dtype=np.int64)
        self._parts.append((columns[0, kept], targets[0, kept], given[kept], halves))

    def joined(self) -> tuple[Float32, Float32, Array, npt.NDArray[np.int64]]:
        """Inputs [p, d], targets [p, R], weights [p] and halves [p] of all that was kept."""
        columns, targets, weights, halves = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        self._parts = [(columns, targets, weights, halves)]
        return columns, targets, weights.astype(np.float64), halves

    def means(self) -> tuple[Array, Array]:
        """x̄ [1, d] and t̄ [1, R] of all that was kept."""
        columns, targets, weights, _ = self.joined()
        shares = weights / weights.sum()
        return _weighted(shares, columns)[None], _weighted(shares, targets)[None]


class WideLayer:
    """A wide layer that is to be rounded: what `quantize.rounding` asks of a layer.

    Parameters
    ----------
    weight : float weights [1, R, d], of any float type
    columns : of its quantized input and its target
    centred : whether a bias will take care of the means
    exact_input : see `quantize.fit`
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
        # [d, p]: what belongs to one input lies together
        self._inputs = np.ascontiguousarray((inputs * roots[:, None].astype(np.float32)).T)
        self.diagonal: Array = (np.einsum("dp,dp->d", self._inputs, self._inputs, dtype=np.float64) + self._mu)[None]
        """Of H + μI, [1, d]."""

    def chunks(self) -> Iterator[slice]:
        """Rows that are rounded at a time."""
        step = max(1, CHUNK_BYTES // (8 * self._weight.shape[1]))
        for start in range(0, len(self._weight), step):
            yield slice(start, start + step)

    def fitted(self, rows: slice) -> Array:
        """Some rows of W' [1, r, d]."""
        found = self._weight[rows].astype(np.float64)
        if self._correction is not None:
            found += self._correction[rows] @ self._inputs.T
        return np.asarray(found[None], dtype=np.float64)

    def round(self, fitted: Array, levels: Levels) -> Array:
        """Codes [1, r, d] of some rows, in steps, by error-compensating rounding; see `quantize.gptq`."""
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
            # what these errors ask of all columns behind them is a product with X, and waits until they are rounded
            weighed = scipy.linalg.solve_triangular(upper, errors[0].T)
            spread += (solved @ weighed).T / self._mu
            remaining -= inputs.T @ inputs
        return codes

    def descend(self, fitted: Array, codes: Array, levels: Levels) -> tuple[Array, Levels]:
        """Improve codes and scales one at a time; see `quantize.coordinate_descent`."""
        sweeps = int(np.clip(_WORK // max(1, self._inputs.size * len(self._weight)), 1, SWEEPS))
        found, scales = codes[0].copy(), levels.scales[0].copy()
        goal, made = fitted[0] @ self._inputs, found @ self._inputs
        _descend(
            fitted[0], self._inputs, goal, found, made, scales, levels.lowest[0], float(levels.count - 1),
            self._mu, self.diagonal[0], sweeps,
        )  # fmt: skip
        return found[None], replace(levels, scales=scales[None])


def _weighted(shares: Array, values: Float32) -> Array:
    """Σ share · value in float64, [p] and [p, n] to [n], some positions at a time."""
    total = np.zeros(values.shape[1])
    for start in range(0, len(values), _BLOCK):
        total += shares[start : start + _BLOCK] @ values[start : start + _BLOCK].astype(np.float64)
    return total


def _scaled(gram: Array, roots: Array) -> Array:
    """XXᵀ [p, p] of inputs times the roots of their shares, so that H = XᵀX."""
    return np.asarray(roots[:, None] * gram * roots, dtype=np.float64)


def _strength(scaled: Array, damping: float, width: int) -> float:
    """λ or μ from its share of the mean of H's diagonal."""
    found = damping * float(np.trace(scaled)) / width
    # see `quantize.fit`
    return found if found > 0 else 1.0


def _cross_validated(
    gram: Array, left: Array, weights: Array, halves: npt.NDArray[np.int64], width: int, centred: bool
) -> float:
    """λ, as a share of the mean of H's diagonal, whose fit to each half leaves least on the other (`quantize.fit`)."""
    sides = [np.flatnonzero(halves == half) for half in (0, 1)]
    if any(len(side) == 0 for side in sides):
        return DAMPING
    # how the means of a half are taken out, and positions weighed
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
    """Improve `codes` [r, d] and `scales` [r] in place; `inputs` are X [d, p], `goal` is wX and `made` qX, [r, p]."""
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
