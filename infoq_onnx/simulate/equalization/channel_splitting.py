"""Outlier channel splitting: split channels that are much larger than the other channels of their tensor.

A tensor has one grid for all its channels. A channel thirty times as large as the others leaves them a thirtieth of the
codes; in a vision transformer, a single channel after one Gelu can cost more than all other 8-bit rounding together. A
split channel is replaced by n copies, each divided by n and each with the weights of the original channel. The matrix
product stays the same, and the channel's range shrinks to an n-th (Zhao et al. 2019, arXiv 1901.09504).

A Gather repeats the channel and a Mul divides it, both in float. A tensor can therefore only be split if a float
operator computes it and only matrix products read it. The number of parts is a power of two, so the division is exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.editing import unused_name, with_initializers
from infoq_onnx.graph.editor import Editor
from infoq_onnx.graph.graph import Graph
from infoq_onnx.schema import Network, Split
from infoq_onnx.simulate.equalization.channel_absmax import reach
from infoq_onnx.simulate.quantizers.placement import Placement
from infoq_onnx.simulate.rounding.as_matmul import form_of

Float32 = npt.NDArray[np.float32]

LARGEST_SHARE = 1 / 32
"""Maximum number of extra parts, as a share of the channels; also their cost in multiplications and weights."""
LEAST_GAIN = 4
"""Minimum factor by which the largest value must shrink; 4 gives all other channels two more bits."""
_GAINS = tuple(LEAST_GAIN << power for power in reversed(range(10)))
"""Factors to try, largest first."""


def find_splits(
    graph: Graph, network: Network, placement: Placement, dataset: Dataset, progress: Callable[[int], None]
) -> tuple[Split, ...]:
    """Choose the channels to split from their largest magnitudes on calibration images.

    Parameters
    ----------
    graph, network, placement : the normalised float network and its quantizer placement
    dataset : calibration images
    progress : called with the number of images just processed

    Returns
    -------
    tuple of Split
        In topological order of the tensors; within a tensor, in the order of its channels.
    """
    axes = dict.fromkeys(splittable(graph, network, placement), -1)
    largest = reach(graph, axes, dataset, progress)
    return tuple(
        Split(tensor, channel, parts)
        for tensor, reached in largest.items()
        for channel, parts in enumerate(parts_of(reached).tolist())
        if parts > 1
    )


def splittable(graph: Graph, network: Network, placement: Placement) -> list[str]:
    """List the tensors whose channels can be split.

    These are outputs of float operators that are read only by matrix products, along their last axis.

    Parameters
    ----------
    graph, network, placement : the normalised float network and its quantizer placement
    """
    layer_of = {layer.name: layer for layer in network.layers}
    quantized = {*placement.storage, *placement.inherited}

    def multiplies(tensor: str, node: onnx.NodeProto) -> bool:
        form = form_of(graph, layer_of[node.name]) if node.name in layer_of else None
        return form is not None and form.windows is None and node.input[0] == tensor

    return [
        group.name
        for group in network.groups
        if group.name in graph.producer
        and group.name not in graph.outputs
        and quantized.isdisjoint(graph.producer[group.name].input)
        and all(multiplies(group.name, node) for node in graph.consumers[group.name])
    ]


def parts_of(largest: Float32) -> npt.NDArray[np.int64]:
    """Choose the number of parts of each channel so that the largest value shrinks as far as `LARGEST_SHARE` allows.

    Parameters
    ----------
    largest : largest magnitude of each channel, [C]

    Returns
    -------
    int64 array [C]
        Powers of two; all 1 if the largest value cannot shrink by `LEAST_GAIN`.
    """
    exact = largest.astype(np.float64)
    whole = np.ones(len(exact), dtype=np.int64)
    top = exact.max(initial=0.0)
    if not 0 < top < np.inf:
        return whole
    for gain in _GAINS:
        exponents = np.ceil(np.log2(np.maximum(exact * (gain / top), 1.0)))
        parts: npt.NDArray[np.int64] = np.exp2(exponents).astype(np.int64)
        if parts.sum() - len(parts) <= LARGEST_SHARE * len(parts):
            return parts
    return whole


def split(graph: Graph, network: Network, splits: Iterable[Split]) -> Graph:
    """Split channels. The network computes the same function, except for the rounding of sums.

    Parameters
    ----------
    graph, network : the normalised float network
    splits : channels to split, of tensors from `splittable`

    Returns
    -------
    Graph
        A new graph.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    layer_of = {layer.name: layer for layer in network.layers}
    parts: dict[str, Counter[int]] = {}
    wider: dict[str, Float32] = {}
    for one in splits:
        parts.setdefault(one.tensor, Counter())[one.channel] = one.parts - 1
    for tensor, more in parts.items():
        channels = graph.shapes[tensor][-1]
        # extra parts are appended at the end, channel by channel, so that all original channels keep their positions
        columns = np.array([*range(channels), *more.elements()])
        shares = np.array([1 / (1 + more[column]) for column in columns.tolist()], dtype=np.float32)
        _read_in_parts(model.graph, tensor, columns, shares)
        for reader in graph.consumers[tensor]:
            layer = layer_of[reader.name]
            wider[str(layer.weight)] = graph.constant(str(layer.weight)).take(columns, 1 - int(layer.channel_axis or 0))
    return Graph(with_initializers(model, wider))


def _read_in_parts(graph: onnx.GraphProto, tensor: str, columns: npt.NDArray[np.int64], shares: Float32) -> None:
    """Make all readers of `tensor` read the given columns of it, multiplied by `shares`; in place."""
    editor = Editor(graph)
    repeated, parts = editor.fresh_name(f"{tensor}_repeated"), editor.fresh_name(f"{tensor}_parts")
    readers = [node for node in editor.nodes if tensor in node.input]
    for node in readers:
        editor.set_input(node, list(node.input).index(tensor), parts)
    indices = editor.add_constant(f"{tensor}_columns", columns)
    factors = editor.add_constant(f"{tensor}_shares", shares)
    taken = {node.name for node in editor.nodes}
    gather, multiply = unused_name(repeated, taken), unused_name(parts, taken)
    nodes = [
        helper.make_node("Gather", [tensor, indices], [repeated], name=gather, axis=-1),
        helper.make_node("Mul", [repeated, factors], [parts], name=multiply),
    ]
    editor.replace(readers[0], [], nodes)
    editor.apply()
