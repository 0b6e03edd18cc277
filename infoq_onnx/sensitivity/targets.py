"""Y, the variable that SMI(L; Y) asks about: the classes, or what stands in for them.

Ross's estimator looks for neighbours *within* a class. A thousand images of a thousand classes leave most of them
without a classmate, and the estimate without a meaning. Then groups of images that the float network finds alike take
the place of the classes: what a layer must keep is what tells them apart.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.special import log_softmax

GROUP_SIZE = 16
"""Images a group, in the mean."""


def has_classmates(labels: npt.NDArray[np.int64], neighbours: int) -> bool:
    """Whether at least half of the samples share their class with `neighbours` others or more."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return bool(np.mean(counts[inverse] > neighbours) >= 0.5)


def groups(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Group samples by the float network's log-probabilities [N, C], by Ward's method; deterministic.

    Returns
    -------
    int64 array [N]
        Group of each sample; N / GROUP_SIZE groups, at least 2.
    """
    tree = linkage(log_softmax(logits.astype(np.float64), axis=1), method="ward")
    found = fcluster(tree, max(2, len(logits) // GROUP_SIZE), criterion="maxclust")
    return np.asarray(found, dtype=np.int64)
