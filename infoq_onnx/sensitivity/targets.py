"""Y, the discrete variable of SMI(L; Y): the classes, or groups of similar images that replace them.

Ross's estimator looks for neighbours *within* a class. With a thousand images of a thousand classes, most images are
alone in their class, and the estimate is meaningless. Then groups of images with similar predictions of the float
network replace the classes. SMI(L; Y) measures how well a layer separates these groups.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.special import log_softmax

GROUP_SIZE = 16
"""Mean number of images per group."""


def has_classmates(labels: npt.NDArray[np.int64], neighbours: int) -> bool:
    """Return whether at least half of the samples share their class with at least `neighbours` other samples."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return bool(np.mean(counts[inverse] > neighbours) >= 0.5)


def groups(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Group samples by the float network's log-probabilities, with Ward's method. The result is deterministic.

    Parameters
    ----------
    logits : logits of the float network, [N, C]

    Returns
    -------
    int64 array [N]
        Group of each sample. There are about N / GROUP_SIZE groups, at least 2.
    """
    tree = linkage(log_softmax(logits.astype(np.float64), axis=1), method="ward")
    found = fcluster(tree, max(2, len(logits) // GROUP_SIZE), criterion="maxclust")
    return np.asarray(found, dtype=np.int64)
