"""The largest magnitude of each channel of a tensor over calibration images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.editing import expose
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.session import open_session
from infoq_onnx.simulate.running.batching import batch_size, run_batches

Float32 = npt.NDArray[np.float32]


def reach(
    graph: Graph, axes: Mapping[str, int], dataset: Dataset, progress: Callable[[int], None]
) -> dict[str, Float32]:
    """Find the largest magnitude of every channel.

    Parameters
    ----------
    graph : the normalised float graph
    axes : tensor → its channel axis, counted with the batch axis
    dataset : calibration images
    progress : called with the number of images just processed

    Returns
    -------
    dict of str to float32 array [C]
        By tensor.
    """
    tensors = list(axes)
    if not tensors:
        return {}
    session = open_session(expose(graph.model, tensors))
    largest: dict[str, Float32] = {}
    for batch, outputs in run_batches(session, graph, tensors, dataset, batch_size(graph, tensors)):
        for tensor, values in zip(tensors, outputs, strict=True):
            seen = np.abs(np.moveaxis(values, axes[tensor], 0)).reshape(values.shape[axes[tensor]], -1).max(axis=1)
            largest[tensor] = np.maximum(largest[tensor], seen) if tensor in largest else seen
        progress(len(batch))
    return largest
