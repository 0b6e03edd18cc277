"""Grids for tensors with massive activations, chosen by their effect on the network's predictions.

In some networks, mainly transformers, one channel of a tensor has values hundreds of times larger than all others (Sun
et al. 2024, arXiv 2402.17762). The range of least squared error stretches to these values and leaves almost no codes
for the rest. The layers that read such values depend little on their exact size, as long as they are large. No error
measure on the tensor itself can detect this. A few ranges are therefore tried, and the one that changes the predictions
least is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.editing import expose
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.session import open_session
from infoq_onnx.quantize.ranges import Histogram, grid_between
from infoq_onnx.schema import BASELINE_BITS, Network, Quantizer
from infoq_onnx.simulate.quantizers.insert import grid_of_group
from infoq_onnx.simulate.running.batching import batch_size, run_batches
from infoq_onnx.simulate.running.divergence import kl_divergence
from infoq_onnx.simulate.running.suffix import Suffix

_COARSE_STEP = 0.25
"""An 8-bit grid is stretched if its step is a larger share of the tensor's root mean square than this."""
_SHRINKS = 2.0 ** (-np.arange(11) / 2)
"""Factors by which the range is shrunk."""
_IMAGES = 64
"""Number of images that predictions are compared on, rounded up to whole batches."""


def is_stretched(histogram: Histogram, quantizer: Quantizer) -> bool:
    """Return whether an 8-bit grid is too coarse for most values of the tensor; False at other bit-widths."""
    total = histogram.counts.sum()
    if quantizer.bits != BASELINE_BITS or total == 0:
        return False
    return quantizer.scale > _COARSE_STEP * float(np.sqrt(np.sum(histogram.counts * histogram.centers() ** 2) / total))


def least_harm(
    graph: Graph,
    network: Network,
    group: str,
    grids: Mapping[int, Quantizer],
    histogram: Histogram,
    dataset: Dataset,
) -> dict[int, Quantizer]:
    """Shrink the grids of an activation group at every width to those that change the predictions least.

    Parameters
    ----------
    graph, network : the normalised float network
    group : the activation group
    grids : initial grids, by bits
    histogram : values of the group's tensor
    dataset : calibration data; only the first images are used

    Returns
    -------
    dict of int to Quantizer
        By bits. At no width is the KL divergence from the float network's predictions larger than with `grids`.
    """
    candidates = [shrunk(quantizer, histogram, shrink) for quantizer in grids.values() for shrink in _SHRINKS]
    variants = [grid_of_group(group, quantizer) for quantizer in candidates]
    suffix = Suffix(graph, network, group, [graph.output], ())
    size = batch_size(graph)
    harm = np.zeros(len(candidates))
    inner = [tensor for tensor in suffix.kept if tensor != graph.input]
    batches = run_batches(open_session(expose(graph.model, inner)), graph, [graph.output, *inner], dataset, size)
    for batch, (expected, *values) in itertools.islice(batches, -(-_IMAGES // size)):
        held = {graph.input: batch, **dict(zip(inner, values, strict=True))}
        results = suffix.run(len(batch), {name: held[name] for name in suffix.kept}, variants)
        harm += [kl_divergence(expected, logits).sum() for (logits,) in results]
    found: dict[int, Quantizer] = {}
    for index in np.argsort(harm, kind="stable"):
        found.setdefault(candidates[index].bits, candidates[index])
    return found


def shrunk(quantizer: Quantizer, histogram: Histogram, shrink: float) -> Quantizer:
    """Return a grid with a smaller range.

    Parameters
    ----------
    quantizer : the original grid
    histogram : values of the tensor
    shrink : new limit, as a share of the magnitude of the range's larger end

    Returns
    -------
    Quantizer
        Its range is the observed range, clipped to ±limit.
    """
    if shrink == 1:
        return quantizer
    levels = (1 << quantizer.bits) - 1
    end = shrink * quantizer.scale * max(quantizer.zero_point, levels - quantizer.zero_point)
    return grid_between(max(histogram.low, -end), min(histogram.high, end), quantizer.bits)
