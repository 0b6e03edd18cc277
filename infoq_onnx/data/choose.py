"""Select the samples of a source to use."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infoq_onnx.data.sources import Source
from infoq_onnx.errors import SettingsError

CLASS_SAMPLES = 16
"""Smallest number of samples per class from which mutual information can be estimated."""


def choose(
    source: Source, samples: int | None, seed: int, without: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int64]:
    """Select `samples` samples of a source at random; the same seed gives the same selection.

    If the source has labels, every class contributes an equal share, or all its samples if it has fewer. Shares differ
    by at most one; the classes with the larger share are drawn at random. If the share of a class would be smaller than
    `CLASS_SAMPLES`, only `samples` // `CLASS_SAMPLES` classes are used, drawn at random from those with enough samples.
    This requires that there are enough such classes, and at least two. The reason is that nearest-neighbour estimators
    learn nothing from a class of one or two samples.

    Parameters
    ----------
    source
        The source to select from.
    samples
        Number of samples; None, or a number not smaller than the number available, selects all.
    seed
        Seed of the random generator, 0 or more.
    without
        Positions to exclude, [M]; None excludes nothing.

    Returns
    -------
    indices : ndarray of int64, [min(samples, len(source) − M)]
        Positions in the source, in ascending order.

    Raises
    ------
    SettingsError
        `samples` is less than 1, or `seed` negative.
    """
    if samples is not None and samples < 1:
        raise SettingsError(f"cannot choose {samples} samples: give 1 or more")
    if seed < 0:
        raise SettingsError(f"the seed {seed} is negative: give 0 or more")
    left = np.arange(len(source), dtype=np.int64)
    if without is not None:
        left = np.setdiff1d(left, without)
    if samples is None or samples >= len(left):
        return left
    rng = np.random.default_rng(seed)
    if source.labels is None:
        return np.sort(left[rng.choice(len(left), samples, replace=False)])
    labels = source.labels[left]
    classes, counts = np.unique(labels, return_counts=True)
    shares = _equal_shares(_narrowed(counts, samples, rng), samples, rng)
    chosen = [
        rng.choice(np.flatnonzero(labels == label), share, replace=False)
        for label, share in zip(classes, shares, strict=True)
    ]
    return np.sort(left[np.concatenate(chosen)])


def _narrowed(counts: npt.NDArray[np.int64], samples: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the class counts, with zeros for the classes to leave out."""
    wanted = samples // CLASS_SAMPLES
    if wanted < 2 or wanted >= len(counts):
        return counts
    enough = np.flatnonzero(counts >= -(-samples // wanted))
    if len(enough) < wanted:
        return counts
    narrowed = np.zeros_like(counts)
    kept = rng.choice(enough, wanted, replace=False)
    narrowed[kept] = counts[kept]
    return narrowed


def _equal_shares(counts: npt.NDArray[np.int64], samples: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Divide `samples` ≤ Σ counts into one share per class.

    Shares differ by at most one, except for classes that contribute all their samples.
    """
    shares = np.zeros_like(counts)
    while left := samples - int(shares.sum()):
        able = np.flatnonzero(shares < counts)
        if left < len(able):
            shares[rng.choice(able, left, replace=False)] += 1
        else:
            shares[able] += np.minimum(left // len(able), (counts - shares)[able])
    return shares
