"""InfoQ's score (arXiv 2508.04753, Eqs. 3 and 4): the mutual information a trial loses at the observers behind it.

::

    S(i, b) = (1/b) · [Σ_j |ΔSMI(X;L_j)| + Σ_k |ΔSMI(L_k;Y)|] / [Σ_j SMI(X;L_j⁸) + Σ_k SMI(L_k⁸;Y)]

with j over the observers of SMI(X;L) and k over those of SMI(L;Y) that unit i can reach, and Δ against the baseline of
8-bit weights and exact activations. The expectation of |Δ| under noise alone is 0.8 σ, not 0: with `debias`,
max(0, |Δ| − σ) stands for |Δ|.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from infoq_onnx.schema import Observer, Score, SweepSettings, Trial


def infoq(trials: Sequence[Trial], observers: Sequence[Observer], settings: SweepSettings) -> tuple[Score, ...]:
    """Score trials by Eq. 4.

    Parameters
    ----------
    trials : the sweep's trials
    observers : candidates with their selection; unselected ones do not count
    settings : `one_over_b` switches the factor 1/b, `debias` the correction for noise

    Returns
    -------
    tuple of Score
        Dimensionless; `se` from the spread over projections, observers taken as independent.
    """
    scores = []
    for trial in trials:
        lost = variance = present = 0.0
        # in the order of the observers: that of a trial's own deltas is not the same when they come from the journal
        for observer in observers:
            delta = trial.deltas.get(observer.tensor)
            if delta is None:
                continue
            for selected, difference, se, baseline in (
                (observer.selected_xl, delta.xl, delta.xl_se, observer.baseline_xl),
                (observer.selected_ly, delta.ly, delta.ly_se, observer.baseline_ly),
            ):
                if selected and difference is not None and se is not None:
                    lost += max(0.0, abs(difference) - se) if settings.debias else abs(difference)
                    variance += se * se
                    present += baseline
        # no observer behind the unit, or none that holds information: nothing can be said, nothing is claimed
        factor = (1.0 / trial.bits if settings.one_over_b else 1.0) / present if present > 0 else math.nan
        if not math.isnan(factor):
            value = factor * lost
            scores.append(Score(trial.unit, trial.kind, trial.bits, value, factor * math.sqrt(variance)))
    return tuple(scores)
