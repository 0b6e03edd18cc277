"""The part of a network in front of its units, which no trial changes: run once for all of them."""

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
    """What is read in front of one unit after the other.

    It is carried along from layer to layer, by the same steps whatever is asked for, so that no value depends on what
    was asked for before: onnxruntime may round otherwise where it gets to a tensor another way. Units are best asked
    for in the order of their `position`: for one in front of the last the way begins at the images again.

    Parameters
    ----------
    graph : the network
    network : its layers
    dataset : the images
    spill : where what is carried goes when it is large; None: it stays in memory
    """

    def __init__(self, graph: Graph, network: Network, dataset: Dataset, spill: Spill | None = None) -> None:
        self._graph, self._dataset, self._spill = graph, dataset, spill
        self._index = {node.name: index for index, node in enumerate(graph.nodes)}
        self._layers = sorted(network.layers, key=lambda layer: self._index[layer.name])
        self._begin()

    def position(self, unit: str) -> int:
        """Count the layers in front of the first node that reads a unit: an initializer, or a group's tensor."""
        first = min(self._index[node.name] for node in self._graph.consumers[unit])
        return sum(self._index[layer.name] < first for layer in self._layers)

    def most_bytes(self) -> int:
        """Count what is carried at most, while it goes from one layer to the next."""
        return 2 * max(self._kept_bytes, default=0)

    def macs_to(self, unit: str) -> int:
        """Multiply-accumulates an image from where it is carried to up to a unit."""
        position = self.position(unit)
        start = next((index for index in range(position, 0, -1) if self._kept_bytes[index - 1]), 0)
        return sum(layer.macs for layer in self._layers[start:position])

    def macs_to_carry(self) -> int:
        """Multiply-accumulates an image that it takes to carry it past all units."""
        end = next((index for index in range(len(self._layers), 0, -1) if self._kept_bytes[index - 1]), 0)
        return sum(layer.macs for layer in self._layers[:end])

    @cached_property
    def _kept_bytes(self) -> list[int]:
        """What is carried behind each layer; 0 where that is too much."""
        return [self._stream.bytes_of(self._stream.kept_behind(layer)) for layer in self._layers]

    def batches(self, unit: str, tensors: Sequence[str]) -> Iterator[tuple[int, dict[str, npt.NDArray[np.float32]]]]:
        """Yield the images of each batch with what some tensors hold, as `Stream.run` does.

        Parameters
        ----------
        unit : as for `position`
        tensors : those that must be kept to run what lies behind the unit, see `graph.extract.cut`
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
