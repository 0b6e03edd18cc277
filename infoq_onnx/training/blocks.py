"""Cut a network into blocks: from one tensor that everything flows through to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infoq_onnx.graph.graph import Graph
from infoq_onnx.schema import Network


@dataclass(frozen=True)
class Block:
    """A part of a network. Everything behind it depends on the part before it through one tensor only."""

    start: str
    """The tensor that it reads."""
    end: str
    """The tensor that it writes."""
    layers: tuple[str, ...]
    """Its layers."""


def blocks_of(graph: Graph, network: Network) -> tuple[Block, ...]:
    """Cut a network into blocks of at least one layer, such as residual blocks.

    Parameters
    ----------
    graph, network : the normalised float network

    Returns
    -------
    tuple of Block
        In order; the first one reads the graph's input, the last one writes the logits.
    """
    found: list[Block] = []
    behind = graph.ancestors(graph.input)
    for start, end in zip(cuts := _cuts(graph), cuts[1:], strict=False):
        within = graph.ancestors(end) - behind
        behind |= within
        layers = tuple(layer.name for layer in network.layers if layer.output in within)
        if found and (not layers or not found[-1].layers):
            # an activation function belongs to the layer before it, and what precedes all layers to the first one
            start, layers = found[-1].start, found[-1].layers + layers
            found.pop()
        found.append(Block(start, end, layers))
    return tuple(found)


def _cuts(graph: Graph) -> Sequence[str]:
    """Return the tensors that everything flows through, from the input to the logits."""
    flowing = {
        name
        for name in graph.descendants([graph.input]) & graph.ancestors(graph.output)
        if graph.dtypes.get(name) == np.float32
    }
    last = {name: index for index, node in enumerate(graph.nodes) for name in node.input if name in flowing}
    live, found = {graph.input}, [graph.input]
    for index, node in enumerate(graph.nodes):
        live -= {name for name in node.input if last.get(name) == index}
        live.update(name for name in node.output if name in flowing)
        if len(live) == 1 and (only := next(iter(live))) != found[-1]:
            found.append(only)
    return found
