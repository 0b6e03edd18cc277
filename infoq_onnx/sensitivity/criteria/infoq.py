"""The InfoQ score (arXiv 2508.04753, Eqs. 3 and 4): mutual information that a trial loses at downstream observers.

::

    S(i, b) = (1/b) · [Σ_j |ΔSMI(X;L_j)| + Σ_k |ΔSMI(L_k;Y)|] / [Σ_j SMI(X;L_j⁸) + Σ_k SMI(L_k⁸;Y)]

j runs over the observers of SMI(X;L), and k over the observers of SMI(L;Y), that unit i can reach. Δ is the difference
from the baseline, which has 8-bit weights and exact activations. Under noise alone, the expectation of |Δ| is 0.8 σ and
not 0. With `debias`, max(0, |Δ| − σ) replaces |Δ|.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from infoq_onnx.errors import SettingsError, setting
from infoq_onnx.schema import Observer, Score, Trial
from infoq_onnx.sensitivity.criteria.base import Context, Scored, criterion
from infoq_onnx.sensitivity.observers import THRESHOLD, select, selection_bits


@criterion(
    source="InfoQ, arXiv 2508.04753",
    needs=("trials", "information"),
    options={
        "threshold": "Correlation with the accuracy drop above which a candidate becomes an observer.",
        "one_over_b": "The factor 1/b of Eq. 4.",
        "debias": "Subtract the noise level from each difference.",
    },
)
def infoq(context: Context, *, threshold: float = THRESHOLD, one_over_b: bool = True, debias: bool = False) -> Scored:
    """Mutual information lost at the observers downstream of the unit, as published (Eq. 4)."""
    observers = observers_of(context, threshold)
    return Scored(equation_4(context.trials, observers, one_over_b=one_over_b, debias=debias), observers)


def observers_of(context: Context, threshold: float) -> tuple[Observer, ...]:
    """Select the observers by the low-bit trials.

    Parameters
    ----------
    context : the trials and the candidates
    threshold : correlation with the accuracy drop above which a candidate becomes an observer, −1 … 1

    Returns
    -------
    tuple of Observer
        All candidates, selected or not.

    Raises
    ------
    SettingsError
        The threshold is not a correlation.
    """
    if not -1 <= threshold <= 1:
        raise SettingsError(f"{setting('threshold')} {threshold}: give a correlation, from -1 to 1")
    low = selection_bits(sorted({trial.bits for trial in context.trials}))
    trials = [trial for trial in context.trials if trial.bits in low]
    return select(context.candidates, trials, threshold, context.network.output)


def equation_4(
    trials: Sequence[Trial], observers: Sequence[Observer], *, one_over_b: bool = True, debias: bool = False
) -> tuple[Score, ...]:
    """Score trials by Eq. 4.

    Parameters
    ----------
    trials : the trials of the sweep
    observers : all candidates; only the selected ones contribute
    one_over_b : include the factor 1/b
    debias : subtract σ from each |Δ|, as above

    Returns
    -------
    tuple of Score
        Dimensionless. `se` comes from the spread over projections and treats observers as independent. A trial without
        an observer that holds information gets no score.
    """
    scores = []
    for trial in trials:
        lost, variance, present = lost_information(trial, observers, debias=debias)
        # no score if the unit reaches no observer, or only observers that hold no information
        if present > 0:
            factor = (1.0 / trial.bits if one_over_b else 1.0) / present
            scores.append(Score(trial.unit, trial.bits, factor * lost, factor * math.sqrt(variance)))
    return tuple(scores)


def lost_information(trial: Trial, observers: Sequence[Observer], *, debias: bool) -> tuple[float, float, float]:
    """Sum the terms of Eq. 4 for a trial.

    Parameters
    ----------
    trial : the trial
    observers : all candidates; only the selected ones contribute
    debias : subtract σ from each |Δ|, as above

    Returns
    -------
    lost : float
        Σ |Δ|, in nats.
    variance : float
        Sum of the squared standard errors of the differences, in nats².
    present : float
        Σ SMI of the baseline at the same observers, in nats.
    """
    lost = variance = present = 0.0
    # sum in the order of the observers: the order of a trial's deltas differs after a trip through the journal
    for observer in observers:
        delta = trial.deltas.get(observer.tensor)
        if delta is None:
            continue
        for selected, difference, se, baseline in (
            (observer.selected_xl, delta.xl, delta.xl_se, observer.baseline_xl),
            (observer.selected_ly, delta.ly, delta.ly_se, observer.baseline_ly),
        ):
            if selected and difference is not None and se is not None:
                lost += max(0.0, abs(difference) - se) if debias else abs(difference)
                variance += se * se
                present += baseline
    return lost, variance, present
