"""Check that a model's scores depend on the image only: run the same images twice, and again in a different batch.

Sums computed in a different order differ by about 1e-6 of their spread. A model that draws random numbers or reads
other images of the batch differs by far more, and on most images. The first tensor to differ is then located.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.errors import ModelError
from infoq_onnx.graph.editing import expose
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.load import load_model
from infoq_onnx.graph.ort import ORT_ERRORS, first_line
from infoq_onnx.graph.session import open_session
from infoq_onnx.simulate.running.batching import padded

IMAGES = 8
"""Number of images to compare; a graph with a fixed batch size uses one batch instead."""
TOLERANCE = 1e-3
"""Largest difference of an image's scores, as a share of the spread of all scores, that is attributed to rounding."""
SHARE = 0.25
"""Share of the images that may differ by more: close to a boundary, a rounded value or an index can jump."""

Array = npt.NDArray[np.float32]


# scores that are not finite are reported elsewhere
@np.errstate(invalid="ignore", over="ignore")
def require_repeatable(graph: Graph, given: Path, dataset: Dataset) -> None:
    """Check that an image gets the same scores in every run and in every batch.

    Parameters
    ----------
    graph : the normalised graph
    given : the original model file, which must give the same scores
    dataset : real images

    Raises
    ------
    ModelError
        The scores differ; the message states where.
    """
    size = IMAGES if graph.batch is None else graph.batch
    known = np.concatenate([batch for _, batch in zip(range(2 * size), dataset.batches(1), strict=False)])
    images = known[:size]
    session = open_session(graph.model)
    together = _scores(session, graph, images)
    spread = float(together.std()) or 1.0
    gaps = _gaps(together, _scores(session, graph, images), spread)
    if _differ(gaps):
        at = int(gaps.argmax())
        raise ModelError(
            f"an image gets other scores when it is run again ({_largest(gaps)}{_first(graph, images, at, images, at)}"
            "): the model draws random numbers; export it for inference, without dropout and noise"
        )
    if graph.batch is None:
        where = "alone"
        apart = np.concatenate([_scores(session, graph, images[index : index + 1]) for index in range(len(images))])
    else:
        # with a fixed batch size, half of the images keep their places and the others are replaced
        where, kept = "beside others", -(-len(images) // 2)
        others = np.concatenate([images[:kept], known[::-1]])[: len(images)]
        apart = _scores(session, graph, others)[:kept]
    gaps = _gaps(together[: len(apart)], apart, spread)
    if _differ(gaps):
        at = int(gaps.argmax())
        company, place = (images[at : at + 1], 0) if graph.batch is None else (others, at)
        raise ModelError(
            f"an image gets other scores {where} than in a batch of {len(images)} ({_largest(gaps)}"
            f"{_first(graph, images, at, company, place)}): the model looks at the other images of a batch; export it "
            "for inference, with a batch axis along which nothing is computed"
        )
    gaps = _gaps(together, _scores(_session_of(given), graph, images), spread)
    if _differ(gaps):
        raise ModelError(
            f"its normal form gives other scores than the file ({_largest(gaps)}); please report this with the model"
        )


def _session_of(given: Path) -> ort.InferenceSession:
    """Open a session of a model file."""
    try:
        return open_session(given)
    except ORT_ERRORS:
        # onnxruntime supports the operators but not the file's IR version
        return open_session(load_model(given))


def _scores(session: ort.InferenceSession, graph: Graph, images: Array) -> Array:
    """Compute the scores [n, classes] of images [n, …]."""
    try:
        (found,) = session.run([graph.output], {graph.input: padded(images, graph.batch)})
    except ORT_ERRORS as error:
        raise ModelError(
            f"onnxruntime cannot run it on a batch of {len(images)} ({first_line(error)}); export it with a batch axis "
            "that is free, or fixed throughout"
        ) from error
    return np.asarray(found, dtype=np.float32)[: len(images)].reshape(len(images), -1)


def _gaps(one: Array, other: Array, spread: float) -> npt.NDArray[np.float64]:
    """Return the largest score difference of each image [n], as a share of `spread`."""
    gaps = np.nan_to_num(np.abs(one.astype(np.float64) - other), nan=0.0, posinf=0.0).max(axis=1)
    return np.asarray(gaps / spread, dtype=np.float64)


def _differ(gaps: npt.NDArray[np.float64]) -> bool:
    """Return whether more images differ than rounding explains."""
    return bool(np.mean(gaps > TOLERANCE) > SHARE)


def _largest(gaps: npt.NDArray[np.float64]) -> str:
    return f"by {100 * gaps.max():.2g} % of the scores' spread"


def _first(graph: Graph, one: Array, at: int, other: Array, place: int) -> str:
    """Name the first node with different values for the same image, at index `at` of `one` and `place` of `other`."""
    names = [
        name
        for node in graph.nodes
        for name in node.output
        if name in graph.batched and graph.dtypes.get(name) == np.float32
    ]
    session = open_session(expose(graph.model, [name for name in names if name not in graph.outputs]))
    runs = [session.run(names, {graph.input: padded(batch, graph.batch)}) for batch in (one, other)]
    for name, left, right in zip(names, *runs, strict=True):
        spread = float(left[at].std()) or 1.0
        if np.abs(left[at] - right[place]).max(initial=0.0) > TOLERANCE * spread:
            return f"; {graph.producer[name].op_type} {graph.producer[name].name!r} is the first node to differ"
    return ""
