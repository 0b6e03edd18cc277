"""Damping of a layer's second moments H, for the least-squares fit and for GPTQ.

λ is a share of the mean of H's diagonal. The fit chooses λ by cross-validation (`quantize.least_squares`). GPTQ needs a
positive definite H and uses `rounding_damping`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infoq_onnx.quantize.moments import Statistics

Array = npt.NDArray[np.float64]

DAMPING = 0.01
"""Minimum λ for GPTQ, and λ of the fit where cross-validation is not possible."""
CANDIDATES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Values of λ that cross-validation compares."""


def rounding_damping(width: int, count: int) -> float:
    """Return λ for GPTQ.

    With fewer positions than inputs, H has directions in which errors appear to cost nothing: its eigenvalues are off
    by about width / count of their mean. The λ of the fit does not measure this uncertainty; it is also large where
    the layer has no error to correct.

    Parameters
    ----------
    width : number of inputs of the layer
    count : number of positions that H was computed from

    Returns
    -------
    float
        λ as a share of the mean of H's diagonal.
    """
    return max(DAMPING, width / count)


def damped(statistics: Statistics, damping: float) -> tuple[Array, Array]:
    """Add λI to H.

    Parameters
    ----------
    statistics : moments, with H [G, d, d]
    damping : λ as a share of the mean of H's diagonal

    Returns
    -------
    second : float64 array [G, d, d]
        H + λI.
    strength : float64 array [G]
        Absolute λ of each group.
    """
    second = statistics.second
    width = second.shape[-1]
    strength: Array = damping * np.trace(second, axis1=1, axis2=2) / width
    # where H is 0, the inputs never vary and the data do not determine the weights: λ = 1 keeps the weights and makes
    # H invertible
    strength = np.where(strength > 0, strength, 1.0)
    return second + strength[:, None, None] * np.eye(width), strength
