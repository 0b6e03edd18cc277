"""What a layer's weights would be if they could be real numbers: a least-squares fit to its target, damped.

W' = (K + λW)(H + λI)⁻¹ is drawn to the float weights W by λ, a share of the mean of H's diagonal. Where images are few
against inputs (a classifier behind global pooling sees one vector an image), a weakly damped fit learns the images by
heart. So λ is chosen by cross-validation: the fit to one half of the images with the least error on the other half.
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
    """W' [G, R, d]"""
    hessian: Array
    """H + μI [G, d, d], positive definite: what the error of rounding W' is weighed by."""
    damping: float
    """λ as a share of the mean of H's diagonal."""


def fit(weight: Array, moments: Moments, *, centred: bool, exact_input: bool = False) -> Fit:
    """Fit a layer to its target.

    Parameters
    ----------
    weight : float weights W [G, R, d]
    moments : of its quantized input and its target
    centred : whether a bias will take care of the means
    exact_input : the target is what W makes of this very input, so W itself is the fit
    """
    statistics = moments.all(centred=centred)
    damping = DAMPING if exact_input else _cross_validated(weight, moments, centred)
    fitted = weight if exact_input else _solved(weight, statistics, damping)
    return Fit(fitted, damped(statistics, rounding_damping(weight.shape[2], statistics.count))[0], damping)


def _cross_validated(weight: Array, moments: Moments, centred: bool) -> float:
    halves = moments.halves(centred=centred)
    if halves is None:
        return DAMPING
    errors = []
    for damping in CANDIDATES:
        error = 0.0
        for known, unknown in (halves, halves[::-1]):
            fitted = _solved(weight, known, damping)
            # E|t − W'x|² but for E|t|², which no candidate changes
            error += float(np.sum((fitted @ unknown.second - 2 * unknown.cross) * fitted))
        errors.append(error)
    return CANDIDATES[int(np.argmin(errors))]


def _solved(weight: Array, statistics: Statistics, damping: float) -> Array:
    """W' [G, R, d]."""
    second, strength = damped(statistics, damping)
    wanted: Array = statistics.cross + strength[:, None, None] * weight
    solved = np.linalg.solve(second, wanted.transpose(0, 2, 1))
    return np.asarray(solved.transpose(0, 2, 1), dtype=np.float64)
