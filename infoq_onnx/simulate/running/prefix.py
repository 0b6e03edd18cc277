"""The part of a network before a unit: no trial of the unit changes it, so it is run once for all trials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.graph import Graph
from infoq_onnx.schema import Network
from infoq_onnx.simulate.running.spill import Spill
from infoq_onnx.simulate.running.streams import Stream


class Prefix:
    """Activations before each unit, computed for one unit after the other.

    Activations advance from layer to layer in the same steps for every request, so no value depends on earlier
    requests. (onnxruntime may round a tensor differently when it is computed from a different starting point.) Request
    units in the order of their `position`: a request for an earlier position restarts from the images.

    Parameters
    ----------
    graph : the network
    network : its layers
    dataset : the images
    spill : where to store large activations; None keeps them in memory
    """

    def __init__(self, graph: Graph, network: Network, dataset: Dataset, spill: Spill | None = None) -> None:
        self.network = network
        self._graph, self._dataset, self._spill = graph, dataset, spill
        self._index = {node.name: index for index, node in enumerate(graph.nodes)}
        self._layers = sorted(network.layers, key=lambda layer: self._index[layer.name])
        self._begin()

    def position(self, unit: str) -> int:
        """Return the number of layers before the first node that reads a unit (an initializer or a group's tensor)."""
        first = min(self._index[node.name] for node in self._graph.consumers[unit])
        return sum(self._index[layer.name] < first for layer in self._layers)

    def stored_bytes(self) -> list[int]:
        """Return the bytes stored during the step over each layer."""
        return [sum(both) for both in self._stream.stored_bytes(self._layers)]

    def macs_to(self, unit: str) -> int:
        """Return the multiply-accumulates per image from the last stored activations to a unit."""
        position = self.position(unit)
        start = next((index for index in range(position, 0, -1) if self._kept_bytes[index - 1]), 0)
        return sum(layer.macs for layer in self._layers[start:position])

    def macs_to_carry(self) -> int:
        """Return the multiply-accumulates per image up to the last position at which activations are stored."""
        end = next((index for index in range(len(self._layers), 0, -1) if self._kept_bytes[index - 1]), 0)
        return sum(layer.macs for layer in self._layers[:end])

    @cached_property
    def _kept_bytes(self) -> list[int]:
        """Bytes stored after each layer; 0 where the activations are too large to store."""
        return [self._stream.bytes_of(self._stream.kept_behind(layer)) for layer in self._layers]

    def batches(self, unit: str, tensors: Sequence[str]) -> Iterator[tuple[int, dict[str, npt.NDArray[np.float32]]]]:
        """Yield the number of images in each batch and the values of some tensors, as `Stream.run` does.

        Parameters
        ----------
        unit : see `position`
        tensors : tensors needed to run the part of the network after the unit, see `graph.extract.cut`
        """
        position = self.position(unit)
        if position < self._carried:
            self._begin()
        while self._carried < position:
            self._stream.advance(self._layers[self._carried])
            self._carried += 1
        left = len(self._dataset)
        for values in self._stream.run(tensors, self._stream.size):
            yield min(left, self._stream.size), dict(zip(tensors, values, strict=True))
            left -= self._stream.size

    def _begin(self) -> None:
        self._stream = Stream(self._graph, self._dataset, integer=False, spill=self._spill)
        self._carried = 0
