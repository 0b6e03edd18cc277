"""Run a network layer by layer over all images, while its constants are being decided."""

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
"""Maximum bytes that a stream stores between two layers, for all images, in memory or in a file."""


class Stream:
    """A network that is run layer by layer.

    After each layer, the stream stores the tensors that the rest of the network reads, unless they are too large. The
    next layer is then computed from these tensors, not from the images.

    Parameters
    ----------
    graph : the network
    dataset : the images
    integer : whether onnxruntime may use integer kernels
    spill : where to store large tensors; None keeps them in memory
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
        """Stored tensors of all images, which the rest of the network reads; None: nothing but the images."""

    def fix(self, layer: Layer, codes: LayerCodes) -> None:
        """Replace a layer's weight and bias by the values of its codes."""
        if layer.weight is not None and layer.channel_axis is not None:
            self._fixed[layer.weight] = dequantize_weight(codes.weight, codes.scales, layer.channel_axis)
        bias = codes.bias_values()
        if layer.bias is not None and bias is not None:
            self._fixed[layer.bias] = bias

    def run(self, tensors: Sequence[str], size: int) -> Iterator[list[Float32]]:
        """Yield the values of some tensors for each batch.

        Parameters
        ----------
        tensors : names of the tensors
        size : images per batch; ignored if the graph's batch size is fixed

        Yields
        ------
        list of float32 arrays
            By tensor: [n, …], or the whole tensor if its leading axis is not the batch.
        """
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
        """Store the tensors that are read after a layer; if they are too large, keep the stream where it is."""
        tensors = self.kept_behind(layer)
        if not tensors:
            return
        # reuse tensors that are already stored; write the others directly to their destination, to avoid copies
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
        """Return the tensors to store after a layer: those computed by then and read by later nodes.

        Empty if the tensors are too large or one of them cannot be stored.
        """
        cut = self._index[layer.name]
        written = {self.graph.input, *(name for node in self.graph.nodes[: cut + 1] for name in node.output)}
        later = dict.fromkeys(name for node in self.graph.nodes[cut + 1 :] for name in reads(node))
        tensors = [name for name in later if name in written]
        if not all(self._storable(name) for name in tensors):
            return []
        # a fixed limit, independent of the available memory: onnxruntime may round recomputed tensors differently
        return tensors if self.bytes_of(tensors) <= _KEPT_BYTES else []

    def stored_bytes(self, layers: Sequence[Layer]) -> list[tuple[int, int]]:
        """Return, for each layer, the bytes stored when the stream reaches it, and those to be stored behind it.

        The latter are 0 where the tensors are too large to store. While the stream advances, both are in memory.
        """
        pairs, stored = [], 0
        for layer in layers:
            behind = self.bytes_of(self.kept_behind(layer))
            pairs.append((stored, behind))
            stored = behind or stored
        return pairs

    def bytes_of(self, tensors: Sequence[str]) -> int:
        """Return the bytes that some tensors take for all images."""
        return 4 * sum(math.prod(self.graph.shapes[name]) for name in tensors) * self.images

    def _room(self, name: str, folder: Path | None) -> Float32 | Filed:
        """Allocate an array for a tensor of all images, in memory or in a file in `folder`."""
        shape = (self.images, *self.graph.shapes[name])
        return np.empty(shape, dtype=np.float32) if folder is None else Filed(shape, folder)

    def _storable(self, name: str) -> bool:
        return name in self.graph.batched and self.graph.dtypes[name] == np.float32

    def _stored(self, size: int) -> Iterator[dict[str, Float32]]:
        kept = self._kept or {}
        for start in range(0, len(self._dataset), size):
            yield {name: values[start : start + size] for name, values in kept.items()}
