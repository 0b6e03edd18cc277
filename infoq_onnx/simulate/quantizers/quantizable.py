"""A network with all that its quantization takes: where quantizers stand, and which grids there are."""

from __future__ import annotations

from dataclasses import dataclass

from infoq_onnx.graph.graph import Graph
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.schema import Network
from infoq_onnx.simulate.quantizers.placement import Placement


@dataclass(frozen=True)
class Quantizable:
    """What simulation, rounding and emission of a network start from; the bits and the rounded weights come beside."""

    graph: Graph
    """The normalised float network, its channels equalised."""
    network: Network
    """Its layers and activation groups."""
    placement: Placement
    """Where quantizers stand."""
    grids: GridTable
    """Every grid, at every width."""
