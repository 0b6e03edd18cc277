"""Distance between the predictions of two networks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

TEMPERATURE = 2.0
"""Temperature of soft divergences. At a temperature of 1, a few images near a decision boundary carry the mean."""


def kl_divergence(
    expected: npt.NDArray[np.floating], found: npt.NDArray[np.floating], temperature: float = 1.0
) -> npt.NDArray[np.float64]:
    """Compute KL(expected ‖ found) between the predictive distributions of two networks.

    Parameters
    ----------
    expected, found : logits of n images, [n, …]
    temperature : divisor of all logits

    Returns
    -------
    float64 array [n]
        Divergence of each image, in nats.
    """
    log_p, log_q = (
        log_softmax(logits.reshape(len(logits), -1).astype(np.float64) / temperature, axis=1)
        for logits in (expected, found)
    )
    divergence: npt.NDArray[np.float64] = np.sum(np.exp(log_p) * (log_p - log_q), axis=1)
    return divergence
