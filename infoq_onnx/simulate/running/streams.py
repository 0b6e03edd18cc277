"""A network that is run layer by layer over all images, as far as it has been decided."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.editing import reads
from infoq_onnx.graph.extract import extract
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.session import open_session
from infoq_onnx.quantize.grid import dequantize_weight
from infoq_onnx.schema import Layer
from infoq_onnx.simulate.running.batching import batch_size, padded
from infoq_onnx.simulate.running.spill import Filed, Spill
from infoq_onnx.simulate.simulation import LayerCodes

Float32 = npt.NDArray[np.float32]
_KEPT_BYTES = 512 * 2**20
"""What one stream may keep of all images between two layers, in memory or in a file."""


class Stream:
    """One network.

    Behind each layer it keeps what the rest of the network reads, where that fits memory, so that the next layer need
    not be reached from the images again.

    Parameters
    ----------
    graph : the network
    dataset : the images
    integer : let onnxruntime use integer kernels
    spill : where what is kept goes when it is large; None: it stays in memory
    """

    def __init__(self, graph: Graph, dataset: Dataset, *, integer: bool, spill: Spill | None = None) -> None:
        self.graph = graph
        self.node = {node.name: node for node in graph.nodes}
        self.size = batch_size(graph)
        self.images = len(dataset)
        self._dataset, self._integer, self._spill = dataset, integer, spill
        self._index = {node.name: index for index, node in enumerate(graph.nodes)}
        self._fixed: dict[str, Float32] = {}
        self._kept: dict[str, Float32 | Filed] | None = None
        """What the rest of the network reads, of all images; None: only the images themselves."""

    def fix(self, layer: Layer, codes: LayerCodes) -> None:
        """Give a layer its rounded constants."""
        if layer.weight is not None and layer.channel_axis is not None:
            self._fixed[layer.weight] = dequantize_weight(codes.weight, codes.scales, layer.channel_axis)
        bias = codes.bias_values()
        if layer.bias is not None and bias is not None:
            self._fixed[layer.bias] = bias

    def run(self, tensors: Sequence[str], size: int) -> Iterator[list[Float32]]:
        """Yield some tensors of each batch, [n, …]; whole, where their leading axis is not the batch."""
        fixed = self.graph.batch
        batches = self._dataset.batches(fixed or size) if self._kept is None else self._stored(fixed or size)
        session = None
        for batch in batches:
            feeds = {self.graph.input: batch} if isinstance(batch, np.ndarray) else batch
            count = len(next(iter(feeds.values())))
            computed = [tensor for tensor in tensors if tensor not in feeds]
            if session is None and computed:
                part = extract(self.graph, list(feeds), computed, self._fixed)
                session = open_session(part, integer_kernels=self._integer)
            values = {name: padded(value, fixed) for name, value in feeds.items()}
            if session is not None:
                values.update(zip(computed, session.run(computed, values), strict=True))
            yield [values[name][:count] if name in self.graph.batched else values[name] for name in tensors]

    def advance(self, layer: Layer) -> None:
        """Keep what is read behind a layer, if that fits memory; else go on from where the stream was."""
        tensors = self.kept_behind(layer)
        if not tensors:
            return
        # what is kept already stays; the rest is written where it will lie, so that nothing is there twice
        before = self._kept or {}
        filed = self._spill.folder if self._spill is not None and self.bytes_of(tensors) > self._spill.above else None
        kept = {name: before[name] if name in before else self._room(name, filed) for name in tensors}
        computed = [name for name in tensors if name not in before]
        start = 0
        for parts in self.run(computed, self.size) if computed else ():
            for name, part in zip(computed, parts, strict=True):
                kept[name][start : start + len(part)] = part
            start += len(parts[0])
        self._kept = kept

    def kept_behind(self, layer: Layer) -> list[str]:
        """Find what is kept behind a layer: what is there then and is read by later nodes; too large, nothing."""
        cut = self._index[layer.name]
        written = {self.graph.input, *(name for node in self.graph.nodes[: cut + 1] for name in node.output)}
        later = dict.fromkeys(name for node in self.graph.nodes[cut + 1 :] for name in reads(node))
        tensors = [name for name in later if name in written]
        if not all(self._storable(name) for name in tensors):
            return []
        # whatever memory there is: what is computed anew, onnxruntime may round otherwise
        return tensors if self.bytes_of(tensors) <= _KEPT_BYTES else []

    def bytes_of(self, tensors: Sequence[str]) -> int:
        """Count what some tensors take, of all images."""
        return 4 * sum(math.prod(self.graph.shapes[name]) for name in tensors) * self.images

    def _room(self, name: str, folder: Path | None) -> Float32 | Filed:
        """Make room for a tensor of all images."""
        shape = (self.images, *self.graph.shapes[name])
        return np.empty(shape, dtype=np.float32) if folder is None else Filed(shape, folder)

    def _storable(self, name: str) -> bool:
        return name in self.graph.batched and self.graph.dtypes[name] == np.float32

    def _stored(self, size: int) -> Iterator[dict[str, Float32]]:
        kept = self._kept or {}
        for start in range(0, len(self._dataset), size):
            yield {name: values[start : start + size] for name, values in kept.items()}
