"""Cross-layer equalisation: give all channels of a tensor the same range without changing the network's function.

A tensor has one grid for all its channels. A channel with a tenth of the largest channel's range uses only a tenth of
the codes. Suppose that a convolution computes the tensor, a depthwise convolution reads it, and all operators in
between commute with a positive factor (Relu, padding with 0 …). Then channel c of the first layer can be multiplied by
f_c and channel c of the second divided by f_c (Nagel et al. 2019, arXiv 1906.04721). Both weights have a separate scale
for each of these channels, so the weights lose no precision. Between dense layers they would, because each row of the
second weight mixes all channels.

Clip(0, h) commutes only while f_c keeps a channel at or below h. Factors are therefore at least 1 and raise the largest
value seen in the calibration images at most to that of the largest channel.
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
"""Tensor that a depthwise convolution reads → factor of each of its channels, [C]."""

LARGEST_FACTOR = 32.0
"""Maximum factor; limits the scaling of channels that are almost 0."""


@dataclass(frozen=True)
class Pair:
    """A convolution and the depthwise convolution that alone reads its output, directly or through other operators."""

    first: Layer
    second: Layer
    tensor: str
    """Input of `second`."""
    bound: float
    """Upper bound at which the tensor is clipped; infinite without a Clip."""


def find_factors(graph: Graph, network: Network, dataset: Dataset, progress: Callable[[int], None]) -> Factors:
    """Choose the factors from the channels' largest magnitudes on calibration images.

    Parameters
    ----------
    graph, network : the normalised float network
    dataset : calibration images
    progress : called with the number of images just processed

    Returns
    -------
    Factors
    """
    found = pairs(graph, network)
    largest = reach(graph, {pair.tensor: 1 for pair in found}, dataset, progress)
    return {pair.tensor: factors_of(largest[pair.tensor], pair.bound) for pair in found}


def factors_of(largest: Float32, bound: float) -> Float32:
    """Compute the factors that raise every channel towards the range of the largest.

    Parameters
    ----------
    largest : largest magnitude of each channel, [C]
    bound : upper bound that no channel may exceed after scaling

    Returns
    -------
    float32 array [C]
        Powers of two from 1 to `LARGEST_FACTOR`.
    """
    exact = largest.astype(np.float64)
    target = min(float(exact.max(initial=0.0)), bound)
    wanted = np.divide(target, exact, out=np.ones(exact.shape), where=exact > 0)
    # round down to powers of two: products with a factor are then exact, and the network stays bit-identical
    exponents = np.floor(np.log2(np.clip(wanted, 1.0, LARGEST_FACTOR)))
    factors: Float32 = np.exp2(exponents).astype(np.float32)
    return factors


def equalized(graph: Graph, network: Network, factors: Mapping[str, Float32]) -> Graph:
    """Apply factors to weights and biases; the network computes the same function.

    Parameters
    ----------
    graph, network : the normalised float network
    factors : factors [C] by tensor, from `find_factors`

    Returns
    -------
    Graph
        `graph` itself if nothing changes.
    """
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
    """Find the pairs of convolutions that can be equalised, in topological order."""
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
    """Return the only reader of a tensor; None if there are several, or if the tensor is an output of the graph."""
    readers = graph.consumers.get(tensor, [])
    return readers[0] if len(readers) == 1 and tensor not in graph.outputs else None


def _commutes(graph: Graph, node: onnx.NodeProto) -> bool:
    """Return whether node(f·x) = f·node(x) for every positive factor per channel that respects the bound of a Clip."""
    if node.op_type != "Pad":
        return clips_at_zero(graph, node)
    pads = input_at(node, 1)
    if attribute(node, "mode", b"constant") != b"constant" or not fills_with_zero(graph, node) or input_at(node, 3):
        return False
    # the batch and channel axes must not be padded
    return pads in graph.initializers and not np.any(graph.constant(pads).reshape(2, -1)[:, :2])
