r"""Pooled scores: what trials measure, with much of the noise taken out by the local errors.

A trial measures the harm h(u, b) of unit u at b bits on a few images, and part of what sets two units apart in it is
noise. The local error e(u, b), the squared error of the unit's own layers, is nearly free of noise. For small errors
the divergence of predictions is quadratic in them, so harm and local error are about proportional::

    log h(u, b) = log s(u) + log e(u, b) + d(k, b) + i(u, b) + noise

- s(u) is the sensitivity of the network to unit u. It is the same at all bit-widths, so all trials of a unit tell it.
- d(k, b), the common deviation of all units of a kind (k: weights or activations) from proportionality at few bits, is
  0 at the highest bit-width that was tried. s and d are found by alternating means and medians.
- i(u, b) is a unit's own deviation, with variance τ² over units and bit-widths. What the fit leaves over is i and noise
  together, with variance τ² + v. The best linear prediction of i(u, b) is what is left over times τ² / (τ² + v)
  (empirical Bayes). τ² is the covariance of what is left over on two halves of the images, which have i in common but
  not the noise. Where there is little noise, scores at bit-widths that were tried are therefore those of the trials;
  where there is much, they follow the local errors.

Between the bit-widths that were tried, i and d are interpolated, so that the score s(u) · e(u, b) · exp(d + i) is also
defined at the others.

The noise of a divergence shrinks with it, that of mutual information does not: differences between estimates have about
the same standard error at all bit-widths, and at many bits they are nothing else. Their model is therefore additive,
h(u, b) = s(u) · e(u, b) + noise, and s(u) is fitted by weighted least squares.

The criteria extend ZeroQ's divergence (arXiv 2001.00281) and InfoQ (arXiv 2508.04753).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from infoq_onnx.errors import SettingsError, setting
from infoq_onnx.schema import LocalError, Score, Trial, Unit
from infoq_onnx.sensitivity.criteria.base import Context, Scored, criterion
from infoq_onnx.sensitivity.criteria.infoq import lost_information, observers_of
from infoq_onnx.sensitivity.observers import THRESHOLD

Array = npt.NDArray[np.float64]

_SWEEPS = 20
"""Number of alternations between sensitivities and deviations; the values settle after a few."""


@dataclass(frozen=True)
class Harm:
    """The harm of one trial."""

    value: float
    """In any unit."""
    parts: tuple[float, ...] = ()
    """Means over groups of images, at least 2; empty: there is no noise. All trials have the same groups."""


@criterion(source="infoq-onnx, on ZeroQ's divergence, arXiv 2001.00281", needs=("trials", "local_errors"))
def kl_pooled(context: Context) -> tuple[Score, ...]:
    """KL divergence of predictions at temperature 2, pooled over bit-widths by the local errors of the layers."""
    harm = divergences(context.trials)
    if context.trials and not harm:
        raise _outdated()
    return pool(harm, context.local_errors)


@criterion(
    source="infoq-onnx, on InfoQ, arXiv 2508.04753",
    needs=("trials", "information", "local_errors"),
    options={"threshold": "Correlation with the accuracy drop above which a candidate becomes an observer."},
)
def infoq_pooled(context: Context, *, threshold: float = THRESHOLD) -> Scored:
    """Mutual information lost at the observers, pooled over bit-widths by the local errors of the layers."""
    observers = observers_of(context, threshold)
    harm = {}
    for trial in context.trials:
        # less the noise, |Δ| is often 0, and the units whose harm is left are those that noise favours
        lost, variance, present = lost_information(trial, observers, debias=False)
        if present > 0:
            harm[trial.unit, trial.bits] = lost / present, math.sqrt(variance) / present
    return Scored(proportional(harm, context.local_errors), observers)


def divergences(trials: Sequence[Trial]) -> dict[tuple[Unit, int], Harm]:
    """Return the soft divergence of each trial as its harm, in nats."""
    return {
        (trial.unit, trial.bits): Harm(math.fsum(trial.soft_kl) / len(trial.soft_kl), trial.soft_kl)
        for trial in trials
        if trial.soft_kl
    }


def pool(harm: Mapping[tuple[Unit, int], Harm], errors: Sequence[LocalError]) -> tuple[Score, ...]:
    """Pool harm over bit-widths.

    Parameters
    ----------
    harm : harm of each trial, by unit and bit-width
    errors : local errors, at these and further bit-widths

    Returns
    -------
    tuple of Score
        One per local error whose unit has a trial, in the order of `errors` and in the unit of the harm. If no trial of
        a unit has both harm and a local error, its scores are 0.

    Raises
    ------
    SettingsError
        There is harm but no local error.
    """
    _require_errors(harm, errors)
    tried = {unit for unit, _ in harm}
    found: dict[tuple[Unit, int], Score] = {}
    known = _known(errors)
    for kind in {unit.kind for unit in tried}:
        local = {key: value for key, value in known.items() if key[0].kind == kind and key[0] in tried}
        found.update(_pool_kind(harm, local))
    return tuple(found[one.unit, one.bits] for one in errors if one.unit in tried)


def proportional(
    harm: Mapping[tuple[Unit, int], tuple[float, float]], errors: Sequence[LocalError]
) -> tuple[Score, ...]:
    """Pool harm whose noise is additive: scores are s(u) · e(u, b), with s(u) by weighted least squares.

    Parameters
    ----------
    harm : harm of each trial and its standard error, by unit and bit-width
    errors : see `pool`

    Returns
    -------
    tuple of Score
        See `pool`.
    """
    _require_errors(harm, errors)
    local = _known(errors)
    # a standard error of 0 would give a trial all the weight
    least = 1e-6 * max((se for _, se in harm.values()), default=0.0) or 1.0
    products: dict[Unit, float] = {}
    squares: dict[Unit, float] = {}
    for key, (value, se) in harm.items():
        weighted = local.get(key, 0.0) / max(se, least)
        products[key[0]] = products.get(key[0], 0.0) + value / max(se, least) * weighted
        squares[key[0]] = squares.get(key[0], 0.0) + weighted * weighted
    scores = []
    for error in errors:
        if error.unit in squares:
            square = squares[error.unit]
            sensitivity, se = (products[error.unit] / square, 1 / math.sqrt(square)) if square > 0 else (0.0, 0.0)
            value = local[error.unit, error.bits]
            scores.append(Score(error.unit, error.bits, sensitivity * value, se * value))
    return tuple(scores)


def _known(errors: Sequence[LocalError]) -> dict[tuple[Unit, int], float]:
    """Return the local errors by unit and bit-width.

    A unit may change nothing on the few images that local errors are measured on, but harm others. Its errors are taken
    to fall by a factor of 4 a bit, as those of uniform steps do.
    """
    some = {one.unit for one in errors if one.value > 0}
    return {(one.unit, one.bits): one.value if one.unit in some else 4.0**-one.bits for one in errors}


def _require_errors(harm: Collection[tuple[Unit, int]], errors: Sequence[LocalError]) -> None:
    if harm and not errors:
        raise _outdated()


def _outdated() -> SettingsError:
    return SettingsError(
        "the analysis lacks what this criterion pools, as an older version made it: give "
        f"{setting('criterion')} kl, or run analyze again"
    )


def _pool_kind(
    harm: Mapping[tuple[Unit, int], Harm], local: Mapping[tuple[Unit, int], float]
) -> dict[tuple[Unit, int], Score]:
    """Pool the harm of all units of one kind, given their local errors."""
    usable = {key: one for key, one in harm.items() if one.value > 0 and local.get(key, 0.0) > 0}
    scores = {key: Score(*key, 0.0, 0.0) for key in local}
    if not usable:
        return scores
    units, widths = sorted({unit for unit, _ in usable}, key=str), sorted({bits for _, bits in usable})

    def table(of: Callable[[Harm], float]) -> Array:
        made = np.full((len(units), len(widths)), math.nan)
        for (unit, bits), one in usable.items():
            made[units.index(unit), widths.index(bits)] = of(one)
        return made

    errors = table(lambda _: 1.0)
    for unit, bits in usable:
        errors[units.index(unit), widths.index(bits)] = local[unit, bits]
    whole = fit(np.log(table(lambda one: one.value) / errors))
    if all(one.parts for one in usable.values()):
        halves = [
            [fit(np.log(table(partial(_mean, mask=mask, odd=odd)) / errors)) for odd in (False, True)]
            for mask in range(1, len(next(iter(usable.values())).parts))
        ]
        real, noise = agreement(halves)
    else:
        real, noise = whole.spread(), np.zeros(len(units))
    total = whole.spread()
    weight = min(1.0, real / total) if total > 0 else 0.0
    for row, unit in enumerate(units):
        at = [index for index in range(len(widths)) if not math.isnan(whole.left[row, index])]
        tried = [widths[index] for index in at]
        for bits in (bits for one, bits in local if one == unit):
            own = weight * float(np.interp(bits, tried, whole.left[row, at]))
            common = float(np.interp(bits, widths, whole.common))
            value = local[unit, bits] * math.exp(whole.sensitivity[row] + common + own)
            unknown = (1 - weight if bits in tried else 1.0) * weight * total
            scores[unit, bits] = Score(unit, bits, value, value * math.sqrt(noise[row] + unknown))
    return scores


def _mean(harm: Harm, mask: int, *, odd: bool) -> float:
    """Return the mean of one half of the parts: those whose index has an odd, or even, number of bits of `mask`.

    For 16 parts, the masks 1 to 15 give 15 orthogonal contrasts (Walsh functions). A half without any harm gets a
    thousandth of the whole, as its logarithm is needed.
    """
    values = [value for index, value in enumerate(harm.parts) if (index & mask).bit_count() % 2 == odd]
    return max(math.fsum(values) / len(values), harm.value / 1000)


@dataclass(frozen=True)
class Fit:
    """The model without own deviations, fitted to all units of one kind."""

    sensitivity: Array
    """log s(u), [units]."""
    common: Array
    """d(b), [bit-widths]; 0 at the highest one."""
    left: Array
    """What the fit leaves over, [units, bit-widths]; NaN where there is no trial."""

    @property
    def freedom(self) -> int:
        """Degrees of freedom of what is left over."""
        units, widths = self.left.shape
        return int(np.count_nonzero(~np.isnan(self.left)) - units - (widths - 1))

    def spread(self) -> float:
        """Return the variance of what is left over."""
        return covariance(self, self)


def fit(table: Array) -> Fit:
    """Fit log s(u) + d(b) by alternating means over bit-widths and medians over units.

    Parameters
    ----------
    table : log h − log e, [units, bit-widths in ascending order]; NaN where there is no trial. Each row and each column
        has at least one value.

    Returns
    -------
    Fit
    """
    common = np.zeros(table.shape[1])
    for _ in range(_SWEEPS):
        sensitivity = np.nanmean(table - common, axis=1)
        common = np.nanmedian(table - sensitivity[:, None], axis=0)
        common -= common[-1]
    sensitivity = np.nanmean(table - common, axis=1)
    return Fit(sensitivity, common, table - sensitivity[:, None] - common)


def covariance(one: Fit, other: Fit) -> float:
    """Return the covariance of what two fits leave over; 0 if they leave nothing over by construction."""
    return float(np.nansum(one.left * other.left)) / one.freedom if one.freedom > 0 else 0.0


def agreement(halves: Sequence[Sequence[Fit]]) -> tuple[float, Array]:
    """Compare fits to two halves of the images.

    Parameters
    ----------
    halves : pairs of fits, for several ways to halve the images

    Returns
    -------
    real : float
        τ², the variance of what both halves leave over alike.
    noise : float64 array [units]
        Variance of log s(u) on all images, apart from what is common to all units, which changes no choice.
    """
    real = float(np.mean([covariance(one, other) for one, other in halves]))
    differences = np.array([one.sensitivity - other.sensitivity for one, other in halves])
    differences -= np.median(differences, axis=1, keepdims=True)
    # the mean of two halves has a quarter of the variance of their difference
    return max(0.0, real), np.square(differences).mean(axis=0) / 4
