"""Which tensors tell harm: candidates, and their selection by correlation with the accuracy drop (InfoQ §3).

A candidate is kept as an observer of SMI(X;L), or of SMI(L;Y), when over the low-bit trials of the units in front of
it |ΔSMI| and the drop of top-1 accuracy have a Pearson correlation above the threshold (0.70 in the paper).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infoq_onnx.graph.graph import Graph
from infoq_onnx.schema import BASELINE_BITS, Candidate, Network, Observer, Trial

SELECTION_BITS = (2, 3, 4)
"""Widths whose trials enter the correlation: higher ones move neither accuracy nor information."""
THRESHOLD = 0.70
"""Correlation above which a candidate becomes an observer, as in the paper."""
MIN_TRIALS = 8
"""Fewer points say nothing about a correlation."""


MAX_CANDIDATES = 24
"""Tensors observed in a deep network: each costs a pass over it and two estimates a trial."""
LAST = 3
"""The last so many candidates are observed in any case: pooled features and logits are among them."""


def candidates(graph: Graph, network: Network) -> tuple[str, ...]:
    """Tensors worth observing, in topological order: every layer's output (after its activation function and residual
    Add), what the last layer reads (the pooled features), and the logits. Tensors that mix the images of a batch, as
    [tokens, batch, features] does, have no row an image that could be observed. A deep network has more than are worth
    their cost: MAX_CANDIDATES are taken, evenly over its depth, the last of all among them.
    """
    tensors = {layer.observed for layer in network.layers}
    tensors |= {network.layers[-1].groups[0], network.output}
    order = {tensor: index for index, node in enumerate(graph.nodes) for tensor in node.output}
    found = sorted(tensors & order.keys() & graph.batched, key=lambda tensor: order[tensor])
    # the last ones tell most, so the spacing is counted from the end
    kept = np.unique(np.linspace(len(found) - 1, 0, min(MAX_CANDIDATES, len(found))).round().astype(int))
    return tuple(found[index] for index in sorted({*kept.tolist(), *range(max(0, len(found) - LAST), len(found))}))


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's r; None for fewer than MIN_TRIALS points or where one side does not vary."""
    if len(x) < MIN_TRIALS:
        return None
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else None


def selection_bits(bits: Sequence[int]) -> list[int]:
    """Return the widths whose trials select observers: those of SELECTION_BITS, or all where there are none."""
    below = [b for b in bits if b != BASELINE_BITS]
    return [b for b in below if b in SELECTION_BITS] or below


def select(
    candidates: Sequence[Candidate], trials: Sequence[Trial], threshold: float, output: str
) -> tuple[Observer, ...]:
    """Judge every candidate and select the observers.

    Parameters
    ----------
    candidates : in topological order
    trials : low-bit trials of weights and activations, pooled
    threshold : correlation above which a candidate is kept
    output : the logits; always kept for SMI(L;Y), so that every unit has an observer

    Returns
    -------
    tuple of Observer
        One for each candidate, whether selected or not, with the reason.
    """
    correlations = {}
    for tensor in (candidate.tensor for candidate in candidates):
        seen = [trial for trial in trials if tensor in trial.deltas]
        drops = [trial.top1_drop for trial in seen]
        xl = _correlation([trial.deltas[tensor].xl for trial in seen], drops)
        ly = _correlation([trial.deltas[tensor].ly for trial in seen], drops)
        correlations[tensor] = (len(seen), xl, ly)
    observers = []
    for candidate in candidates:
        tensor = candidate.tensor
        count, xl, ly = correlations[tensor]
        above_xl, above_ly = _kept(xl, threshold), _kept(ly, threshold)
        keep_xl, keep_ly = above_xl, above_ly or tensor == output
        reason = (
            f"r above {threshold:g}"
            if above_xl or above_ly
            else "the logits: every unit reaches them"
            if keep_ly
            else f"fewer than {MIN_TRIALS} trials in front of it"
            if count < MIN_TRIALS
            else f"r not above {threshold:g}"
        )
        observers.append(
            Observer(tensor, candidate.baseline_xl, candidate.baseline_ly, xl, ly, count, keep_xl, keep_ly, reason)
        )
    return tuple(observers)


def _correlation(differences: Sequence[float | None], drops: Sequence[float]) -> float | None:
    pairs = [
        (abs(difference), drop) for difference, drop in zip(differences, drops, strict=True) if difference is not None
    ]
    return pearson([lost for lost, _ in pairs], [drop for _, drop in pairs])


def _kept(correlation: float | None, threshold: float) -> bool:
    return correlation is not None and correlation > threshold
