"""Candidate observers, and the selection of those that indicate harm by correlation with the accuracy drop (InfoQ §3).

A candidate becomes an observer of SMI(X;L), or of SMI(L;Y), if |ΔSMI| and the drop of top-1 accuracy have a Pearson
correlation above the threshold (0.70 in the paper). The correlation is over the low-bit trials of the units upstream of
the candidate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infoq_onnx.graph.graph import Graph
from infoq_onnx.schema import BASELINE_BITS, Candidate, Network, Observer, Trial

SELECTION_BITS = (2, 3, 4)
"""Bit-widths whose trials enter the correlation. Higher bit-widths change neither accuracy nor information."""
THRESHOLD = 0.70
"""Correlation above which a candidate becomes an observer, as in the paper."""
MIN_TRIALS = 8
"""Minimum number of trials for a correlation."""


MAX_CANDIDATES = 24
"""Maximum number of evenly spaced candidates. Each costs a pass over the tensor and two estimates per trial."""
LAST = 3
"""The last 3 candidates are always observed. They include the pooled features and the logits."""


def candidates(graph: Graph, network: Network) -> tuple[str, ...]:
    """Return the candidate tensors in topological order.

    Candidates are the output of every layer (after its activation function and residual Add), the input of the last
    layer (the pooled features), and the logits. Tensors without a leading batch axis, such as [tokens, batch,
    features], are excluded because they have no row per image. If there are more than MAX_CANDIDATES, MAX_CANDIDATES of
    them are taken evenly over the depth, plus the last LAST.

    Parameters
    ----------
    graph : the normalised graph
    network : its layers and groups

    Returns
    -------
    tuple of str
    """
    tensors = {layer.observed for layer in network.layers}
    tensors |= {network.layers[-1].groups[0], network.output}
    order = {tensor: index for index, node in enumerate(graph.nodes) for tensor in node.output}
    found = sorted(tensors & order.keys() & graph.batched, key=lambda tensor: order[tensor])
    # the last candidates are the most informative, so the spacing is counted from the end
    kept = np.unique(np.linspace(len(found) - 1, 0, min(MAX_CANDIDATES, len(found))).round().astype(int))
    return tuple(found[index] for index in sorted({*kept.tolist(), *range(max(0, len(found) - LAST), len(found))}))


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Pearson's r, or None for fewer than MIN_TRIALS points or if one side is constant."""
    if len(x) < MIN_TRIALS:
        return None
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else None


def selection_bits(bits: Sequence[int]) -> list[int]:
    """Return the bit-widths whose trials select observers: those in SELECTION_BITS, or all below 8 if none is."""
    below = [b for b in bits if b != BASELINE_BITS]
    return [b for b in below if b in SELECTION_BITS] or below


def select(
    candidates: Sequence[Candidate], trials: Sequence[Trial], threshold: float, output: str
) -> tuple[Observer, ...]:
    """Select the observers among the candidates.

    Parameters
    ----------
    candidates : all candidates, in topological order
    trials : low-bit trials of weights and activations, pooled
    threshold : correlation above which a candidate is selected
    output : the logits; always selected for SMI(L;Y), so that every unit has an observer

    Returns
    -------
    tuple of Observer
        One per candidate, selected or not, with the reason.
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
