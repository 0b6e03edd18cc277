"""Output divergence, as in ZeroQ: mean KL of the trial's predictive distribution from the baseline's, in nats.

The criterion needs no labels, no observers and no estimator. It is the reference that other criteria have to beat.
"""

from __future__ import annotations

from infoq_onnx.schema import Score
from infoq_onnx.sensitivity.criteria.base import Context, criterion


@criterion(source="ZeroQ, arXiv 2001.00281", needs=("trials",))
def kl(context: Context) -> tuple[Score, ...]:
    """KL divergence of the trial's predictions from the baseline's; `se` is over images."""
    return tuple(Score(trial.unit, trial.bits, trial.kl, trial.kl_se or 0.0) for trial in context.trials)
