"""Pooling of sweeps over different images: means weighted by the number of images.

Divergence and accuracy are means over images, so pooling them is exact. The mean of mutual information estimates on
parts of the images differs from the estimate on all images. But the difference between trial and baseline is taken on
the same images within each part, so the mean of the differences is also an estimate of the information lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from infoq_onnx.schema import Candidate, Delta, Trial
from infoq_onnx.sensitivity.sweep import SweepResult


def pooled(results: Sequence[SweepResult], images: Sequence[int]) -> SweepResult:
    """Pool sweeps of the same trials.

    Parameters
    ----------
    results : one sweep per set of images
    images : number of images of each sweep

    Returns
    -------
    SweepResult
        Means weighted by the number of images. Standard errors treat the estimates as independent.
    """
    if len(results) == 1:
        return results[0]
    shares = [count / sum(images) for count in images]

    def mean(values: Sequence[float]) -> float:
        return math.fsum(share * value for share, value in zip(shares, values, strict=True))

    def delta(parts: Sequence[Delta]) -> Delta:
        return Delta(
            _over([part.xl for part in parts], shares),
            _error([part.xl_se for part in parts], shares),
            _over([part.ly for part in parts], shares),
            _error([part.ly_se for part in parts], shares),
        )

    trials = []
    for parts in zip(*(result.trials for result in results), strict=True):
        (changes,) = {part.changes for part in parts}
        tensors = sorted(set.intersection(*(set(part.deltas) for part in parts)))
        deltas = {tensor: delta([part.deltas[tensor] for part in parts]) for tensor in tensors}
        trials.append(
            Trial(
                changes,
                mean([part.top1_drop for part in parts]),
                mean([part.kl for part in parts]),
                deltas,
                _error([part.kl_se for part in parts], shares),
                tuple(mean(groups) for groups in zip(*(part.soft_kl for part in parts), strict=True)),
            )
        )
    candidates = [
        Candidate(parts[0].tensor, mean([p.baseline_xl for p in parts]), mean([p.baseline_ly for p in parts]))
        for parts in zip(*(result.candidates for result in results), strict=True)
    ]
    top1 = mean([result.baseline_top1 for result in results])
    return SweepResult(top1, tuple(candidates), tuple(trials), results[0].seeing)


def _over(values: Sequence[float | None], shares: Sequence[float]) -> float | None:
    known = [value for value in values if value is not None]
    return None if len(known) < len(values) else math.fsum(s * v for s, v in zip(shares, known, strict=True))


def _error(errors: Sequence[float | None], shares: Sequence[float]) -> float | None:
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return None
    return math.sqrt(math.fsum((share * error) ** 2 for share, error in zip(shares, known, strict=True)))
