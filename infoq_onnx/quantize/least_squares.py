"""Real-valued weights for a layer: a damped least-squares fit to the layer's target.

In W' = (K + λW)(H + λI)⁻¹, λ pulls the fit towards the float weights W. It is given as a share of the mean of H's
diagonal. Where a layer has many inputs but few images (a classifier after global pooling sees one vector per image), a
weakly damped fit overfits. λ is therefore chosen by two-fold cross-validation: fit one half of the images, measure the
error on the other half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infoq_onnx.quantize.damping import CANDIDATES, DAMPING, damped, rounding_damping
from infoq_onnx.quantize.moments import Moments, Statistics

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """A fitted layer."""

    weight: Array
    """Fitted weights W' [G, R, d]."""
    hessian: Array
    """H + μI [G, d, d], positive definite; weights the error of rounding W'."""
    damping: float
    """λ as a share of the mean of H's diagonal."""


def fit(weight: Array, moments: Moments, *, centred: bool, exact_input: bool = False) -> Fit:
    """Fit a layer to its target.

    Parameters
    ----------
    weight : float weights W [G, R, d]
    moments : moments of the layer's quantized input and its target
    centred : whether to use centred moments, because a bias corrects the means later
    exact_input : whether the target is W applied to this same input; W itself is then the fit

    Returns
    -------
    Fit

    Raises
    ------
    ModelError
        The moments exceed float32.
    """
    statistics = moments.all(centred=centred)
    damping = DAMPING if exact_input else _cross_validated(weight, moments, centred)
    fitted = weight if exact_input else _solved(weight, statistics, damping)
    return Fit(fitted, damped(statistics, rounding_damping(weight.shape[2], statistics.count))[0], damping)


def _cross_validated(weight: Array, moments: Moments, centred: bool) -> float:
    """Choose λ by cross-validation, or return `DAMPING` where one half has no images."""
    halves = moments.halves(centred=centred)
    if halves is None:
        return DAMPING
    errors = []
    for damping in CANDIDATES:
        error = 0.0
        for known, unknown in (halves, halves[::-1]):
            fitted = _solved(weight, known, damping)
            # E|t − W'x|² without E|t|², which is the same for every candidate
            error += float(np.sum((fitted @ unknown.second - 2 * unknown.cross) * fitted))
        errors.append(error)
    return CANDIDATES[int(np.argmin(errors))]


def _solved(weight: Array, statistics: Statistics, damping: float) -> Array:
    """Return W' [G, R, d] for one λ."""
    second, strength = damped(statistics, damping)
    wanted: Array = statistics.cross + strength[:, None, None] * weight
    solved = np.linalg.solve(second, wanted.transpose(0, 2, 1))
    return np.asarray(solved.transpose(0, 2, 1), dtype=np.float64)
