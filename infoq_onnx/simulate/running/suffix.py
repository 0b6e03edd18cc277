"""Run a network again with one unit quantized otherwise, computing only what lies behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from infoq_onnx.graph.extract import cut, extract
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.session import open_session
from infoq_onnx.schema import Network
from infoq_onnx.simulate.quantizers.insert import quantize_group
from infoq_onnx.simulate.running.batching import padded

Variant = Mapping[str, npt.NDArray[np.generic]]
Kept = Mapping[str, npt.NDArray[np.float32]]


class Suffix:
    """The part of a network behind one unit, ready to be run with other values for it.

    Parameters
    ----------
    graph : the network
    network : its layers
    unit : an initializer (a layer's weight) or the tensor of an activation group
    outputs : what to compute; each must depend on the unit
    fed : initializers that variants give values for: the unit's own where it is one, and its layer's bias

    Attributes
    ----------
    kept : tuple of str
        The tensors in front of the unit, and beside it, that are read behind it.
    """

    def __init__(self, graph: Graph, network: Network, unit: str, outputs: Sequence[str], fed: Sequence[str]) -> None:
        self._graph = graph
        self._outputs = list(outputs)
        self.kept = cut(graph, [unit])
        if unit in graph.initializers:
            after = extract(graph, [*self.kept, *fed], outputs)
        else:
            after = extract(graph, self.kept, outputs)
            quantize_group(after, network, unit)
        self._after = open_session(after, integer_kernels=False)

    def run(self, count: int, kept: Kept, variants: Sequence[Variant]) -> list[list[npt.NDArray[np.float32]]]:
        """Compute the outputs for a batch under each variant.

        Parameters
        ----------
        count : n, images in the batch
        kept : what the tensors `kept` hold; those whose leading axis is the batch, [n, …]
        variants : what is fed, one mapping a variant: the weight, or the group's grid under `group_names`

        Returns
        -------
        list over variants of the list over outputs of arrays [n, …]
        """
        fixed = self._graph.batch
        feeds = {name: padded(value, fixed) if name in self._graph.batched else value for name, value in kept.items()}
        results = []
        for variant in variants:
            outputs = self._after.run(self._outputs, {**feeds, **variant})
            results.append([output[:count] for output in outputs])
        return results
