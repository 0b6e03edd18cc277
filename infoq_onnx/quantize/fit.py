"""What a layer's weights would be if they could be real numbers: a least-squares fit to its target, damped.

W' = (K + λW)(H + λI)⁻¹ is drawn to the float weights W by λ, a share of the mean of H's diagonal. Where images are few
against inputs (a classifier behind global pooling sees one vector an image), a weakly damped fit learns the images by
heart. So λ is chosen by cross-validation: the fit to one half of the images with the least error on the other half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infoq_onnx.quantize.moments import Moments, Statistics

Array = npt.NDArray[np.float64]

DAMPING = 0.01
"""λ where there is nothing to choose it by."""
CANDIDATES = (0.001, 0.01, 0.1, 1.0, 10.0)


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
    # with fewer samples than inputs H knows directions in which errors seem to cost nothing: its eigenvalues are off by
    # about d/p of their mean. λ says nothing of that: it is large, too, where there is nothing to mend
    _, _, width = weight.shape
    rounding = max(DAMPING, width / statistics.count)
    return Fit(fitted, _damped(statistics, rounding)[0], damping)


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
    damped, strength = _damped(statistics, damping)
    wanted: Array = statistics.cross + strength[:, None, None] * weight
    solved = np.linalg.solve(damped, wanted.transpose(0, 2, 1))
    return np.asarray(solved.transpose(0, 2, 1), dtype=np.float64)


def _damped(statistics: Statistics, damping: float) -> tuple[Array, Array]:
    """H + λI [G, d, d] and λ [G]."""
    second = statistics.second
    width = second.shape[-1]
    strength: Array = damping * np.trace(second, axis1=1, axis2=2) / width
    # an input that never varies says nothing about its weight: keep the weight, and keep H invertible
    strength = np.where(strength > 0, strength, 1.0)
    damped: Array = second + strength[:, None, None] * np.eye(width)
    return damped, strength
