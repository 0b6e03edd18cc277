"""The images of the trials, in blocks: trials use one block after the other until the decision is settled.

Ranges use all calibration images, which is cheap. Trials are what takes time. How many images they need
depends on the network and on the budget, so they take blocks of images that double in number.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infoq_onnx.schema import Effort

FIRST = 64
"""Number of images of the first block."""

ROUNDING = 256
"""Number of images with which the weights of trials are rounded below full effort."""

Positions = npt.NDArray[np.int64]


def positions(labels: npt.NDArray[np.int64] | None, count: int, effort: Effort, seed: int) -> list[Positions]:
    """Divide images among the blocks of trials.

    Parameters
    ----------
    labels : class of each image [N]; None without labels
    count : number of images, N
    effort : "full" has one block of all images; "quick" has only the first of the blocks of "normal"
    seed : seed of the analysis

    Returns
    -------
    list of int64 arrays
        Positions of the images of each block in ascending order, in the order in which trials use the blocks. Each
        block has about equal shares of all classes.
    """
    if effort == "full":
        return [np.arange(count)]
    order = balanced(labels, count, seed)
    parts = [np.sort(order[start:stop]) for start, stop in bounds(count)]
    return parts[:1] if effort == "quick" else parts


def rounding_count(count: int, effort: Effort) -> int:
    """Return with how many of `count` images the weights of trials are rounded: all at full effort, else few."""
    return count if effort == "full" else min(count, ROUNDING)


def rounding_positions(labels: npt.NDArray[np.int64] | None, count: int, effort: Effort, seed: int) -> Positions:
    """Choose the images with which the weights of trials are rounded.

    Parameters
    ----------
    labels, count, effort, seed : see `positions`

    Returns
    -------
    int64 array
        Positions in ascending order, see `rounding_count`.
    """
    return np.sort(balanced(labels, count, seed)[: rounding_count(count, effort)])


def bounds(count: int) -> list[tuple[int, int]]:
    """Return where each block of `count` images begins and ends: 64, 64, 128, 256, … images.

    Each block after the first doubles the number of images so far. The last block may be half or one and a half times
    as large as that, so that it takes all images that are left.
    """
    ends = [FIRST]
    while 2 * count >= 3 * ends[-1]:
        doubled = 2 * ends[-1]
        ends.append(doubled if 2 * count >= 3 * doubled else count)
    ends[-1] = count
    return list(zip([0, *ends], ends, strict=False))


def balanced(labels: npt.NDArray[np.int64] | None, count: int, seed: int) -> Positions:
    """Return a random order of images in which every stretch has about equal shares of all classes.

    Parameters
    ----------
    labels : class of each image [N]; None: the order is merely random
    count : number of images, N
    seed : seed of the analysis

    Returns
    -------
    int64 array [N]
        A permutation of the images.
    """
    random = np.random.default_rng(np.random.SeedSequence((seed, 2)))
    order = random.permutation(count)
    if labels is None:
        return order
    place = np.empty(count)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + random.random()) / len(members)
    return np.argsort(place, kind="stable")
