"""Which samples of a source to use."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infoq_onnx.data.sources import Source
from infoq_onnx.errors import SettingsError

CLASS_SAMPLES = 16
"""Fewest samples of a class that tell its mutual information with anything."""


def choose(
    source: Source, samples: int | None, seed: int, without: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int64]:
    """Pick `samples` of the source, the same ones for the same seed.

    With labels every class gives an equal share, as far as it has that many; the classes that give one more are drawn.
    Where a share would be less than `CLASS_SAMPLES`, fewer classes that can give so many are drawn and the others left
    out, provided there are enough such classes and two at least: nearest-neighbour estimators learn nothing from a
    class of one or two samples.

    Parameters
    ----------
    samples
        How many; None, or as many as there are or more, means all.
    seed
        Not negative.
    without
        Positions that are taken already, [M]; None: none are.

    Returns
    -------
    indices : ndarray of int64, [min(samples, len(source) − M)]
        Ascending positions in the source.

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
    """Zero the counts of the classes to leave out."""
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
    """Divide `samples` ≤ Σ counts so that shares differ by at most one, except for classes that give all they have."""
    shares = np.zeros_like(counts)
    while left := samples - int(shares.sum()):
        able = np.flatnonzero(shares < counts)
        if left < len(able):
            shares[rng.choice(able, left, replace=False)] += 1
        else:
            shares[able] += np.minimum(left // len(able), (counts - shares)[able])
    return shares
