"""How far two networks' predictions are apart."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax


def kl_divergence(expected: npt.NDArray[np.floating], found: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """KL(expected ‖ found) of the predictive distributions of logits [n, …], for each of n images, in nats."""
    log_p, log_q = (
        log_softmax(logits.reshape(len(logits), -1).astype(np.float64), axis=1) for logits in (expected, found)
    )
    divergence: npt.NDArray[np.float64] = np.sum(np.exp(log_p) * (log_p - log_q), axis=1)
    return divergence
