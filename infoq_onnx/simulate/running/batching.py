"""Run a session over a dataset in batches that fit memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.graph import Graph

_BATCH_BYTES = 128 * 2**20
"""Maximum bytes for the float activations that are alive at the same time."""
_LARGEST_BATCH = 128
"""Maximum number of images per batch."""


def batch_size(graph: Graph, kept: Sequence[str] = ()) -> int:
    """Return the batch size: the graph's fixed batch size, or one that keeps activations within about 128 MiB.

    Parameters
    ----------
    graph : the graph to run
    kept : outputs, which are all alive at the same time

    Returns
    -------
    int
        Images per batch.
    """
    if graph.batch is not None:
        return graph.batch
    largest = max((math.prod(graph.shapes[tensor]) for tensor in graph.batched), default=1)
    alive = 3 * largest + sum(math.prod(graph.shapes[tensor]) for tensor in kept)
    return int(np.clip(_BATCH_BYTES // (4 * max(alive, 1)), 1, _LARGEST_BATCH))


def padded(batch: npt.NDArray[np.float32], fixed: int | None) -> npt.NDArray[np.float32]:
    """Pad a short batch to the graph's fixed batch size by repeating its last image.

    Parameters
    ----------
    batch : images [n, …]
    fixed : fixed batch size of the graph; None if the batch axis is free

    Returns
    -------
    float32 array [fixed, …]
        `batch` itself where nothing is missing.
    """
    missing = 0 if fixed is None else fixed - len(batch)
    return np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing > 0 else batch


def run_batches(
    session: ort.InferenceSession, graph: Graph, outputs: Sequence[str], dataset: Dataset, size: int
) -> Iterator[tuple[npt.NDArray[np.float32], list[npt.NDArray[np.float32]]]]:
    """Run a session over a dataset and yield each batch with its outputs.

    Parameters
    ----------
    session : session of `graph`, or of a copy with more outputs
    graph : the graph
    outputs : names of the outputs to compute
    dataset : the images
    size : images per batch

    Yields
    ------
    batch : float32 array [n, …]
        The images.
    outputs : list of arrays
        [n, …] for outputs with a leading batch axis. Other outputs are as the session returns them and include the
        padding of a short batch.
    """
    for batch in dataset.batches(size):
        # given no output names, onnxruntime would compute all outputs
        results = session.run(list(outputs), {graph.input: padded(batch, graph.batch)}) if outputs else []
        named = zip(outputs, results, strict=True)
        yield batch, [result[: len(batch)] if name in graph.batched else result for name, result in named]


def logits_of(session: ort.InferenceSession, graph: Graph, dataset: Dataset, size: int) -> npt.NDArray[np.float32]:
    """Compute the logits of a whole dataset.

    Parameters
    ----------
    session : session of `graph`
    graph : the graph
    dataset : N images
    size : images per batch

    Returns
    -------
    float32 array [N, classes]
    """
    parts = [outputs[0] for _, outputs in run_batches(session, graph, [graph.output], dataset, size)]
    return np.concatenate(parts).reshape(len(dataset), -1)
