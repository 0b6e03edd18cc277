"""Small networks made ready for the later stages: normalised, searched, and calibrated on seeded noise."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.data.sources import Source
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.network import find_network
from infoq_onnx.graph.normalize import normalize
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.schema import BITS, Bits, Network
from infoq_onnx.simulate.quantizers.calibrate import calibrate
from infoq_onnx.simulate.quantizers.placement import Placement, place
from infoq_onnx.simulate.quantizers.quantizable import Quantizable

from . import networks


@dataclass(frozen=True)
class Ready:
    """All that simulation, sweep and emission ask for."""

    graph: Graph
    network: Network
    placement: Placement
    dataset: Dataset
    table: GridTable

    @property
    def quantizable(self) -> Quantizable:
        """What simulation, rounding and emission start from."""
        return Quantizable(self.graph, self.network, self.placement, self.table)

    def uniform(self, weights: int, activations: int) -> Bits:
        """The same bits everywhere."""
        return Bits(
            {layer.name: weights for layer in self.network.layers if layer.weight is not None},
            {group.name: activations for group in self.network.groups},
        )

    def mixed(self, seed: int) -> Bits:
        """Bits drawn for each unit."""
        random = np.random.default_rng(seed)
        weights, activations = self.uniform(8, 8)
        return Bits(
            {name: int(random.choice(BITS)) for name in weights},
            {name: int(random.choice(BITS)) for name in activations},
        )


def images(shape: tuple[int, ...], count: int = 48, seed: int = 1) -> npt.NDArray[np.float32]:
    """Standard normal samples [count, *shape]."""
    return np.random.default_rng(seed).standard_normal((count, *shape), dtype=np.float32)


def dataset_of(values: npt.NDArray[np.float32], labels: npt.NDArray[np.int64] | None = None) -> Dataset:
    """A dataset of arrays in memory."""
    source = Source(Path("noise.npz"), None, (), values, labels, None)
    indices = np.arange(len(values), dtype=np.int64)
    return Dataset(source, values.shape[1:], None, indices, labels, "", (), values.__getitem__)


def searched(model: onnx.ModelProto) -> tuple[Graph, Network, Placement]:
    """Normalise a model, find its layers, and place the quantizers."""
    graph = Graph(normalize(model))
    network = find_network(graph)
    return graph, network, place(graph, network)


def ready(model: onnx.ModelProto, values: npt.NDArray[np.float32] | None = None, bits: Any = BITS) -> Ready:
    """Calibrate a model on `values`, by default on noise."""
    graph, network, placement = searched(model)
    dataset = dataset_of(images(network.input_shape) if values is None else values)
    table = calibrate(graph, network, placement, dataset, bits, lambda _: None)
    return Ready(graph, network, placement, dataset, table)


@functools.cache
def small(name: str) -> Ready:
    """One of `networks.SMALL`, ready; made once for all tests, so nothing in it may be changed."""
    return ready(networks.SMALL[name]())


def spread_of(differences: npt.NDArray[Any], reference: npt.NDArray[Any]) -> float:
    """Root mean square of differences as a share of the reference's standard deviation."""
    return float(np.sqrt(np.mean(np.square(differences, dtype=np.float64))) / reference.std())


def is_one_line(error: BaseException, *parts: str) -> bool:
    """Whether a message is what users may see: one line that names every part."""
    text = str(error)
    return "\n" not in text and bool(text) and all(part in text for part in parts)
