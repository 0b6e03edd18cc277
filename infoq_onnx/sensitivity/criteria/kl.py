"""Output divergence (as in ZeroQ): the mean KL of the trial's predictive distribution from the baseline's, in nats.

It needs no labels, no observers and no estimator: the criterion any other has to beat.
"""

from __future__ import annotations

from infoq_onnx.schema import Score
from infoq_onnx.sensitivity.criteria.base import Context, criterion


@criterion(source="ZeroQ, arXiv 2001.00281", needs=("trials",))
def kl(context: Context) -> tuple[Score, ...]:
    """KL divergence of the trial's predictions from the baseline's; exact for these images, so its error is 0."""
    return tuple(Score(trial.unit, trial.bits, trial.kl, 0.0) for trial in context.trials)
