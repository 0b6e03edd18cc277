"""Find a network's grids: activation ranges from two passes over calibration data, weight scales from the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.editing import expose
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.operators import clip_bounds
from infoq_onnx.graph.session import open_session
from infoq_onnx.quantize.grid import clips_alike
from infoq_onnx.quantize.ranges import Histogram, Range
from infoq_onnx.quantize.ranges.mse import mse
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.quantize.weight_scales import weight_scales
from infoq_onnx.schema import BASELINE_BITS, EXACT_BITS, Network, Quantizer
from infoq_onnx.simulate.quantizers.insert import Quantizers
from infoq_onnx.simulate.quantizers.outlier_ranges import is_stretched, least_harm
from infoq_onnx.simulate.quantizers.placement import Placement
from infoq_onnx.simulate.running.batching import batch_size, run_batches

Advance = Callable[[int], None]
"""Progress callback that takes the number of images just processed."""


def calibrate(
    graph: Graph,
    network: Network,
    placement: Placement,
    dataset: Dataset,
    bits: Sequence[int],
    advance: Advance,
    chosen: Range = mse,
) -> GridTable:
    """Find all grids that the network may need.

    Parameters
    ----------
    graph, network, placement : the normalised float network and its quantizer placement
    dataset : calibration data
    bits : bit-widths to calibrate besides 8
    advance : called with the number of images just processed; every image is processed twice
    chosen : method that chooses activation ranges. Only with `mse`, groups whose range is stretched by a few large
        values get the range that changes the predictions least, see `simulate.quantizers.outlier_ranges`

    Returns
    -------
    GridTable
        Storage tensors at 8 bits; groups at every width in `bits` and at 8; weights at every width in `bits` and at 7
        and 8.
    """
    widths = sorted({*bits, BASELINE_BITS})
    groups = [group.name for group in network.groups]
    tensors = list(dict.fromkeys([*placement.storage, *groups]))
    histograms = observe(graph, tensors, dataset, advance)
    grids: dict[str, dict[int, Quantizer]] = {}
    for tensor in tensors:
        wanted = widths if tensor in groups else [BASELINE_BITS]
        grids[tensor] = {b: chosen(histograms[tensor], b) for b in wanted}
    for group in groups:
        stretched = is_stretched(histograms[group], grids[group][BASELINE_BITS])
        if chosen is mse and placement.root(group) == group and stretched:
            grids[group] = least_harm(graph, network, group, grids[group], histograms[group], dataset)
    # from the last Concat to the first: a Concat that feeds another one has its final grid before its inputs take it
    for tensor, whole in reversed(placement.joined.items()):
        grid = grids[whole][BASELINE_BITS]
        if tensor not in placement.fused or clips_alike(grid, *clip_bounds(graph, graph.producer[tensor])):
            grids[tensor][BASELINE_BITS] = grid
    for group in groups:
        # an inherited tensor shares its root's 8-bit grid, so that no value is rounded twice
        grids[group][BASELINE_BITS] = grids[placement.root(group)][BASELINE_BITS]
    weights = {}
    for layer in network.layers:
        if layer.weight is not None and layer.channel_axis is not None:
            weight = graph.constant(layer.weight)
            # 7 bits replace 8 bits where 8-bit products would saturate (see `emit.targets`)
            weights[layer.name] = {
                b: weight_scales(weight, b, layer.channel_axis) for b in sorted({*widths, EXACT_BITS})
            }
    return GridTable(grids, weights)


def observe(graph: Graph, tensors: Sequence[str], dataset: Dataset, advance: Advance) -> dict[str, Histogram]:
    """Compute histograms of tensors of the float model over a dataset, in two passes: extremes, then counts.

    Parameters
    ----------
    graph : the normalised float graph
    tensors : tensors to observe; may include the graph's input
    dataset : calibration data
    advance : called with the number of images just processed; every image is processed twice

    Returns
    -------
    dict of str to Histogram
        By tensor.
    """
    size = batch_size(graph, tensors)
    inner = [tensor for tensor in tensors if tensor != graph.input]
    session = open_session(expose(graph.model, inner))

    def passes() -> Iterable[dict[str, np.ndarray]]:
        for batch, outputs in run_batches(session, graph, inner, dataset, size):
            advance(len(batch))
            yield {graph.input: batch, **dict(zip(inner, outputs, strict=True))}

    low = dict.fromkeys(tensors, 0.0)
    high = dict.fromkeys(tensors, 0.0)
    for values in passes():
        for tensor in tensors:
            low[tensor] = min(low[tensor], float(values[tensor].min()))
            high[tensor] = max(high[tensor], float(values[tensor].max()))
    histograms = {tensor: Histogram.empty(low[tensor], high[tensor]) for tensor in tensors}
    for values in passes():
        for tensor in tensors:
            histograms[tensor].add(values[tensor])
    return histograms


def quantizers_of(table: GridTable, placement: Placement, activation_bits: Mapping[str, int]) -> Quantizers:
    """Select the activation quantizers of one configuration.

    Parameters
    ----------
    table : all grids of the network
    placement : the quantizer placement
    activation_bits : bit-width of each activation group

    Returns
    -------
    Quantizers
    """
    storage = {tensor: table.activations[tensor][BASELINE_BITS] for tensor in placement.storage}
    groups = {group: table.activations[group][bits] for group, bits in activation_bits.items()}
    return Quantizers(storage, groups)
