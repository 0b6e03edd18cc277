"""The bias of a layer whose output a Relu or a Clip cuts off.

What the next layer reads is the output *behind* the activation. Rounding makes outputs wider, and what it adds is cut
off on one side only: with the right mean in front of a Relu, the mean behind it is too large. A layer that reads it and
is rounded later can mend that, unless it is depthwise: there the shift is felt inside, and not at the padded border
(docs/methods.md has the figures). So the bias is set to what gives the float network's mean behind the activation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

_STEPS = 20
_LEAST_SHARE = 0.05
"""A Newton step of the bias divides by the share of outputs that it moves; by this, where they are fewer."""


@dataclass(frozen=True)
class Clipped:
    """Some positions of a layer's input and target, and the bounds behind its output."""

    columns: Float32
    """Its quantized input [G, p, d]."""
    targets: Float32
    """What its output should be [G, p, R]."""
    added: Float32 | None
    """What a residual Add adds in front of the activation [G, p, R]."""
    low: float
    high: float

    def of(self, rows: slice) -> Clipped:
        """Return some rows of it."""
        added = None if self.added is None else self.added[:, :, rows]
        return replace(self, targets=self.targets[:, :, rows], added=added)


def bias_behind(clipped: Clipped, weight: Array, bias: Array) -> Array:
    """Bias [G, R] with the mean behind the activation that the float network has, by Newton's method.

    Parameters
    ----------
    clipped : what the layer gets, and what it should give
    weight : rounded weights [G, R, d]
    bias : where to begin [G, R]
    """
    added = np.float32(0) if clipped.added is None else clipped.added
    product = np.matmul(clipped.columns, weight.transpose(0, 2, 1).astype(np.float32)) + added
    wanted = np.clip(clipped.targets + added, clipped.low, clipped.high).mean(axis=1, dtype=np.float64)
    for _ in range(_STEPS):
        output = product + bias[:, None, :].astype(np.float32)
        moved = np.mean((output > clipped.low) & (output < clipped.high), axis=1)
        mean = np.clip(output, clipped.low, clipped.high).mean(axis=1, dtype=np.float64)
        bias = bias + (wanted - mean) / np.maximum(moved, _LEAST_SHARE)
    return bias
