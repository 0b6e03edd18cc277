"""Run a network again with one thing changed, computing only what lies after the change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from infoq_onnx.graph.extract import cut, extract
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.session import open_session
from infoq_onnx.simulate.batching import padded

Variant = Mapping[str, npt.NDArray[np.generic]]


class Rerun:
    """The part of a float simulation after some initializers, ready to be run with other values for them.

    Parameters
    ----------
    graph : a simulation
    changed : the initializers whose values vary; all else is constant
    outputs : what to compute; each must depend on `changed`
    """

    def __init__(self, graph: Graph, changed: Sequence[str], outputs: Sequence[str]) -> None:
        self._graph = graph
        self._outputs = list(outputs)
        self._kept = [tensor for tensor in cut(graph, changed) if tensor not in changed]
        self._computed = [tensor for tensor in self._kept if tensor != graph.input]
        self._before = (
            open_session(extract(graph, [graph.input], self._computed), integer_kernels=False)
            if self._computed
            else None
        )
        after = extract(graph, [*self._kept, *changed], outputs)
        self._after = open_session(after, integer_kernels=False)

    def run(self, batch: npt.NDArray[np.float32], variants: Sequence[Variant]) -> list[list[npt.NDArray[np.float32]]]:
        """Compute the outputs for a batch under each variant.

        Parameters
        ----------
        batch : [n, …]
        variants : values of the changed initializers, one mapping a variant

        Returns
        -------
        list over variants of the list over outputs of arrays [n, …]
        """
        inputs = padded(batch, self._graph.batch)
        kept = {self._graph.input: inputs} if self._graph.input in self._kept else {}
        if self._before is not None:
            kept.update(zip(self._computed, self._before.run(self._computed, {self._graph.input: inputs}), strict=True))
        results = []
        for variant in variants:
            outputs = self._after.run(self._outputs, {**kept, **variant})
            results.append([output[: len(batch)] for output in outputs])
        return results
