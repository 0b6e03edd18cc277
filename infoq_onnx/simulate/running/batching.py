"""Feeding a dataset through a session in batches that fit memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.graph import Graph

_BATCH_BYTES = 128 * 2**20
"""What the float activations that are alive at once may take."""
_LARGEST_BATCH = 128


def batch_size(graph: Graph, kept: Sequence[str] = ()) -> int:
    """Images a batch: what the graph is fixed to, or as many as keep activations within some 128 MiB.

    Parameters
    ----------
    graph : the graph to be run
    kept : tensors that are alive all at once, being outputs
    """
    if graph.batch is not None:
        return graph.batch
    largest = max((math.prod(graph.shapes[tensor]) for tensor in graph.batched), default=1)
    alive = 3 * largest + sum(math.prod(graph.shapes[tensor]) for tensor in kept)
    return int(np.clip(_BATCH_BYTES // (4 * max(alive, 1)), 1, _LARGEST_BATCH))


def padded(batch: npt.NDArray[np.float32], fixed: int | None) -> npt.NDArray[np.float32]:
    """Fill a short batch up to the size the graph is fixed to, by repeating its last image."""
    missing = 0 if fixed is None else fixed - len(batch)
    return np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing > 0 else batch


def run_batches(
    session: ort.InferenceSession, graph: Graph, outputs: Sequence[str], dataset: Dataset, size: int
) -> Iterator[tuple[npt.NDArray[np.float32], list[npt.NDArray[np.float32]]]]:
    """Yield each batch of a dataset [n, …] with the session's outputs for it.

    Outputs with a leading batch axis are [n, …]; others are as the session gives them, with what a short batch was
    filled up with.
    """
    for batch in dataset.batches(size):
        # of none onnxruntime would give all
        results = session.run(list(outputs), {graph.input: padded(batch, graph.batch)}) if outputs else []
        named = zip(outputs, results, strict=True)
        yield batch, [result[: len(batch)] if name in graph.batched else result for name, result in named]


def logits_of(session: ort.InferenceSession, graph: Graph, dataset: Dataset, size: int) -> npt.NDArray[np.float32]:
    """Logits [N, classes] of a whole dataset."""
    parts = [outputs[0] for _, outputs in run_batches(session, graph, [graph.output], dataset, size)]
    return np.concatenate(parts).reshape(len(dataset), -1)
