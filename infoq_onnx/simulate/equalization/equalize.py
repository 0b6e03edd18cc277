"""Cross-layer equalisation: give all channels of a tensor the same range, without changing what the network computes.

A tensor has one grid for all its channels. A channel that only reaches a tenth of the range of the largest has a tenth
of its codes. Where a convolution makes the tensor and a depthwise one reads it, with nothing in between that does not
commute with a positive factor (Relu, padding with 0 …), channel c of the first can be multiplied by f_c and that of the
second divided by it (Nagel et al. 2019, arXiv 1906.04721). Both weights have a scale for each of these channels, so
they lose nothing by it. Between dense layers they would: there each row of the second mixes all channels.

Clip(0, h) commutes only while f_c keeps a channel at or below h. So factors are at least 1, and bring the largest value
seen in the calibration images up to the largest of all channels, no further.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.editing import attribute, input_at, with_initializers
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.operators import clip_bounds, fills_with_zero, is_depthwise
from infoq_onnx.quantize.grid import per_channel
from infoq_onnx.schema import Layer, Network
from infoq_onnx.simulate.equalization.channel_absmax import reach
from infoq_onnx.simulate.quantizers.fused_activations import clips_at_zero

Float32 = npt.NDArray[np.float32]
Factors = dict[str, Float32]
"""Tensor that a depthwise convolution reads → what each of its channels is multiplied by, [C]."""

LARGEST_FACTOR = 32.0
"""Channels that hold next to nothing are not blown up any further."""


@dataclass(frozen=True)
class Pair:
    """Two layers with a tensor between them that nothing else reads."""

    first: Layer
    second: Layer
    tensor: str
    """What `second` reads."""
    bound: float
    """Above this the tensor is clipped; infinite where it is not."""


def find_factors(graph: Graph, network: Network, dataset: Dataset, progress: Callable[[int], None]) -> Factors:
    """Choose the factors from what each channel holds on calibration images.

    Parameters
    ----------
    graph, network : the normalised float network
    dataset : calibration images
    progress : called with the number of images done
    """
    found = pairs(graph, network)
    largest = reach(graph, {pair.tensor: 1 for pair in found}, dataset, progress)
    return {pair.tensor: factors_of(largest[pair.tensor], pair.bound) for pair in found}


def factors_of(largest: Float32, bound: float) -> Float32:
    """Factors [C] that bring every channel to the range of the largest.

    Parameters
    ----------
    largest : magnitude that each channel reaches, [C]
    bound : what no channel may be brought beyond
    """
    exact = largest.astype(np.float64)
    target = min(float(exact.max(initial=0.0)), bound)
    wanted = np.divide(target, exact, out=np.ones(exact.shape), where=exact > 0)
    # rounded down to powers of two: then no product with a factor is rounded, and the network stays the same to the bit
    exponents = np.floor(np.log2(np.clip(wanted, 1.0, LARGEST_FACTOR)))
    factors: Float32 = np.exp2(exponents).astype(np.float32)
    return factors


def equalized(graph: Graph, network: Network, factors: Mapping[str, Float32]) -> Graph:
    """Apply factors: the same network, with other weights and biases."""
    changed: dict[str, Float32] = {}

    def multiply(name: str, by: Float32, axis: int) -> None:
        values = changed.get(name, graph.constant(name))
        changed[name] = (values * per_channel(by, values.ndim, axis)).astype(np.float32)

    for pair in pairs(graph, network):
        if pair.tensor in factors:
            factor = factors[pair.tensor]
            multiply(str(pair.first.weight), factor, int(pair.first.channel_axis or 0))
            if pair.first.bias is not None:
                multiply(pair.first.bias, factor, 0)
            multiply(str(pair.second.weight), np.float32(1) / factor, 0)
    if not changed:
        return graph
    return Graph(with_initializers(graph.model, changed))


def pairs(graph: Graph, network: Network) -> list[Pair]:
    """Convolutions with a depthwise one behind them, in topological order."""
    layer_of = {layer.name: layer for layer in network.layers}
    found = []
    for first in network.layers:
        if first.op_type != "Conv" or first.weight is None:
            continue
        if first.bias is None and input_at(graph.producer[first.output], 2):
            # a bias that is computed at run time cannot be multiplied
            continue
        tensor, bound = first.output, np.inf
        while (reader := _only_reader(graph, tensor)) is not None and reader.name not in layer_of:
            if not _commutes(graph, reader):
                break
            tensor = reader.output[0]
            bound = min(bound, clip_bounds(graph, reader)[1]) if reader.op_type in ("Relu", "Clip") else bound
        if reader is not None and reader.name in layer_of and reader.input[0] == tensor and is_depthwise(graph, reader):
            found.append(Pair(first, layer_of[reader.name], tensor, bound))
    return found


def _only_reader(graph: Graph, tensor: str) -> onnx.NodeProto | None:
    readers = graph.consumers.get(tensor, [])
    return readers[0] if len(readers) == 1 and tensor not in graph.outputs else None


def _commutes(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether node(f·x) = f·node(x) for every positive factor of a channel that keeps the bound of a Clip."""
    if node.op_type != "Pad":
        return clips_at_zero(graph, node)
    pads = input_at(node, 1)
    if attribute(node, "mode", b"constant") != b"constant" or not fills_with_zero(graph, node) or input_at(node, 3):
        return False
    # other channels may not come in between
    return pads in graph.initializers and not np.any(graph.constant(pads).reshape(2, -1)[:, :2])
