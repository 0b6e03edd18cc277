"""Rerun the part of a network after one unit, with different quantizations of the unit."""

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
"""Values to feed for one quantization of the unit, by name."""
Kept = Mapping[str, npt.NDArray[np.float32]]
"""Values of the tensors before the unit, by name."""


class Suffix:
    """The part of a network after one unit, ready to run with different values of the unit.

    Parameters
    ----------
    graph : the network
    network : its layers
    unit : an initializer (a layer's weight) or the tensor of an activation group
    outputs : tensors to compute; each must depend on the unit
    fed : initializers that variants provide: the unit itself if it is an initializer, and its layer's bias

    Attributes
    ----------
    kept : tuple of str
        Tensors that this part of the network reads but does not compute.
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
        count : number n of images in the batch
        kept : values of the tensors `kept`; [n, …] where the leading axis is the batch
        variants : values to feed, one mapping per variant: the weight, or the group's grid (see `group_names`)

        Returns
        -------
        list of list of arrays [n, …]
            By variant and output.
        """
        fixed = self._graph.batch
        feeds = {name: padded(value, fixed) if name in self._graph.batched else value for name, value in kept.items()}
        results = []
        for variant in variants:
            outputs = self._after.run(self._outputs, {**feeds, **variant})
            results.append([output[:count] for output in outputs])
        return results
