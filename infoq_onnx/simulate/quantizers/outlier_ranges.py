"""Grids for tensors with massive activations, by what the network's output says.

In some networks, transformers above all, one channel of a tensor holds values hundreds of times larger than all others
(Sun et al. 2024, arXiv 2402.17762). The least squared error stretches the grid to them, and next to nothing is left of
the rest. What they are read by hardly minds how large they are, as long as they are large. No error of the tensor
itself can know that, so a few ranges are tried, and the one is taken that changes the predictions least.
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
"""A grid of 8 bits whose step is a larger share of the tensor's root mean square is stretched by something."""
_SHRINKS = 2.0 ** (-np.arange(11) / 2)
"""What the range is multiplied by."""
_IMAGES = 64


def is_stretched(histogram: Histogram, quantizer: Quantizer) -> bool:
    """Whether an 8-bit grid is too coarse for most of what the tensor holds."""
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
    """Shrink the grids of an activation group, at every width, to what changes the predictions least.

    Parameters
    ----------
    graph, network : the normalised float network
    group : whose grids
    grids : to begin with, by bits
    histogram : what the group's tensor holds
    dataset : calibration data, of which the first images are enough

    Returns
    -------
    dict of int to Quantizer
        With a KL divergence from the float network's predictions that is nowhere larger.
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
    """Cut a grid's range off at a share of its larger end; on the other side it may now reach what there is."""
    if shrink == 1:
        return quantizer
    levels = (1 << quantizer.bits) - 1
    end = shrink * quantizer.scale * max(quantizer.zero_point, levels - quantizer.zero_point)
    return grid_between(max(histogram.low, -end), min(histogram.high, end), quantizer.bits)
