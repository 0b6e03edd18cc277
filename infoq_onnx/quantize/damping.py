"""How strongly a layer's second moments H are damped, for the least-squares fit and for GPTQ.

λ is a share of the mean of H's diagonal. The fit chooses it by cross-validation (`quantize.fit`). GPTQ needs a positive
definite H and takes `rounding_damping`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infoq_onnx.quantize.moments import Statistics

Array = npt.NDArray[np.float64]

DAMPING = 0.01
"""λ of GPTQ, and of the fit where too few images are there to choose it by."""
CANDIDATES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""λ that cross-validation chooses among."""


def rounding_damping(width: int, count: int) -> float:
    """Return λ for GPTQ of a layer with `width` inputs, seen at `count` positions.

    With fewer positions than inputs, H knows directions in which errors seem to cost nothing: its eigenvalues are off
    by about width / count of their mean. The λ of the fit says nothing about that; it is large, too, where there is
    nothing to mend.
    """
    return max(DAMPING, width / count)


def damped(statistics: Statistics, damping: float) -> tuple[Array, Array]:
    """Add λI to H.

    Parameters
    ----------
    statistics : with H [G, d, d]
    damping : λ as a share of the mean of H's diagonal

    Returns
    -------
    H + λI [G, d, d], λ [G]
    """
    second = statistics.second
    width = second.shape[-1]
    strength: Array = damping * np.trace(second, axis1=1, axis2=2) / width
    # an input that never varies says nothing about its weight: keep the weight, and keep H invertible
    strength = np.where(strength > 0, strength, 1.0)
    return second + strength[:, None, None] * np.eye(width), strength
