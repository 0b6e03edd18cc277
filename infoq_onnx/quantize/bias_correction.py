"""The bias of a layer that is followed by a Relu or a Clip.

The next layer reads the output *after* the activation. Rounding widens the distribution of outputs, and a Relu cuts off
the added spread on one side only: if the mean before the Relu is right, the mean after it is too large. A reader that
is rounded later can compensate for this shift, unless it is depthwise: a depthwise layer sees the shift in the interior
but not at its padded border (figures in docs/methods.md). The bias is therefore chosen so that the mean after the
activation equals the float network's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

_STEPS = 20
"""Number of Newton steps."""
_LEAST_SHARE = 0.05
"""A Newton step divides by the share of outputs that the bias moves, or by this share if that is larger."""


@dataclass(frozen=True)
class Clipped:
    """Sampled positions of a layer's input and target, and the bounds of the activation after it."""

    columns: Float32
    """Quantized input [G, p, d]."""
    targets: Float32
    """Desired output [G, p, R]."""
    added: Float32 | None
    """The other operand of a residual Add before the activation [G, p, R]; None without an Add."""
    low: float
    high: float

    def of(self, rows: slice) -> Clipped:
        """Return a copy restricted to some rows of R."""
        added = None if self.added is None else self.added[:, :, rows]
        return replace(self, targets=self.targets[:, :, rows], added=added)


def bias_behind(clipped: Clipped, weight: Array, bias: Array) -> Array:
    """Find the bias that gives the float network's mean after the activation, by Newton's method.

    Parameters
    ----------
    clipped : inputs and targets of the layer, and the bounds of the activation
    weight : rounded weights [G, R, d]
    bias : initial bias [G, R]

    Returns
    -------
    float64 array [G, R]
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
