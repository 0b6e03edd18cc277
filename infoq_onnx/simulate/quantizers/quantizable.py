"""A network together with its quantizer placement and its grids."""

from __future__ import annotations

from dataclasses import dataclass

from infoq_onnx.graph.graph import Graph
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.schema import Network
from infoq_onnx.simulate.quantizers.placement import Placement


@dataclass(frozen=True)
class Quantizable:
    """The common input of simulation, rounding and emission. Bit-widths and rounded weights are passed separately."""

    graph: Graph
    """The normalised float network, with equalised channels."""
    network: Network
    """Layers and activation groups of the network."""
    placement: Placement
    """Positions of the quantizers."""
    grids: GridTable
    """All grids at every bit-width."""
