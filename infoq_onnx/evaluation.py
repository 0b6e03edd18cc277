"""Measure the accuracy, size and latency of an ONNX classifier."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from scipy.special import ndtri

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.data.preprocess import AS_IS
from infoq_onnx.errors import ModelError, setting
from infoq_onnx.graph.external import model_bytes
from infoq_onnx.graph.graph import LOGITS_KEY
from infoq_onnx.graph.load import NO_OUTPUTS, NO_TEXT, QONNX, QONNX_DOMAIN, require_file
from infoq_onnx.graph.ort import NOT_ONNX, ORT_ERRORS, first_line, run_session
from infoq_onnx.graph.session import open_session
from infoq_onnx.schema import Evaluation, Preprocessing, from_json
from infoq_onnx.simulate.running.batching import padded

PREPROCESSING_KEY = "infoq_onnx.preprocessing"
"""Key of the metadata entry that holds a model's `Preprocessing` as JSON."""

_BATCH = 32
_LATENCY_RUNS = 30
_LATENCY_WARM_UP = 5


@dataclass(frozen=True)
class Classifier:
    """An ONNX classifier, quantized or not, opened in onnxruntime."""

    path: Path
    session: ort.InferenceSession
    input: str
    output: str
    """The output with the class scores."""
    input_shape: tuple[int, ...]
    """Shape of one image."""
    batch: int | None
    """Fixed batch size; None if it is free."""
    classes: int | None
    """Number of classes; None if the file does not specify it."""
    file_bytes: int
    """Size of the model in bytes, including external data."""
    preprocessing: Preprocessing | None
    """Preprocessing stored in the file; None if there is none."""

    def run(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Compute the logits of a batch; a short batch is padded to the fixed batch size.

        Parameters
        ----------
        batch : ndarray of float32, [n, *input_shape]

        Returns
        -------
        logits : ndarray of float32, [n, C]

        Raises
        ------
        ModelError
            onnxruntime cannot run the model.
        """
        try:
            logits = run_session(self.session, {self.input: padded(batch, self.batch)}, [self.output])[0][: len(batch)]
        except ORT_ERRORS as error:
            raise ModelError(f"{self.path}: onnxruntime cannot run it ({first_line(error)})") from error
        result: npt.NDArray[np.float32] = logits.reshape(len(batch), -1)
        return result

    def logits(self, dataset: Dataset) -> npt.NDArray[np.float32]:
        """Compute the logits [N, C] of a dataset, float32.

        Raises
        ------
        ModelError
            onnxruntime cannot run the model, or a logit is NaN.
        """
        logits = np.concatenate([self.run(batch) for batch in dataset.batches(self.batch or _BATCH)])
        if np.isnan(logits).any():
            raise ModelError(
                f"{self.path} computes NaN logits on these images; check the preprocessing, or export the model again "
                "so that its values stay within float32"
            )
        return logits


def open_classifier(path: Path, logits: str = "") -> Classifier:
    """Open a model file for evaluation.

    Parameters
    ----------
    path : an ONNX file
    logits : the output with the class scores, if it has one of this name and does not name another itself

    Raises
    ------
    ModelError
        The file does not exist, onnxruntime cannot load or run it, or the model does not have exactly one float32 input
        of known size and a float32 output.
    """
    path = Path(path)
    require_file(path)
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ModelError(f"{path}: onnxruntime cannot open a file whose name is not Unicode; rename it") from error
    try:
        session = open_session(path)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        _ = [value.name for value in (*inputs, *outputs)]
    except NOT_ONNX as error:
        raise ModelError(f"{path} is not an ONNX model, or damaged; give the path of one") from error
    except ORT_ERRORS as error:
        if QONNX_DOMAIN in str(error):
            raise ModelError(f"{path} {QONNX}") from error
        raise ModelError(f"{path}: onnxruntime cannot load it ({first_line(error)})") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} {NO_TEXT}") from error
    if not outputs:
        raise ModelError(f"{path} {NO_OUTPUTS}")
    metadata = session.get_modelmeta().custom_metadata_map
    output = _scores_among(outputs, metadata.get(LOGITS_KEY, logits))
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise ModelError(f"{path} has {len(inputs)} inputs ({names}): only classifiers with one input can be evaluated")
    (value,) = inputs
    if value.type != "tensor(float)":
        raise ModelError(f"{path}: input {value.name} is {value.type}, expected tensor(float)")
    # onnxruntime reports [] both for a scalar and for a shape that the file does not specify
    batch, *shape = value.shape or [None]
    if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ModelError(f"{path}: input {value.name} has the shape {value.shape}: fix all but the batch axis")
    if output.type != "tensor(float)":
        raise ModelError(f"{path}: output {output.name} is {output.type}, expected tensor(float) [batch, classes]")
    sizes = [size for size in output.shape[1:] if size != 1]
    classes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], int) else None
    is_fixed = isinstance(batch, int) and batch > 0
    fixed = batch if is_fixed else _hidden_batch(path, session, value.name, output.name, shape)
    try:
        text = metadata[PREPROCESSING_KEY]
        preprocessing = from_json(Preprocessing, text)
    except (KeyError, ValueError):
        # most models have no such entry; an entry that this version cannot read is ignored
        preprocessing = None
    if preprocessing == AS_IS:
        preprocessing = None
    return Classifier(
        path, session, value.name, output.name, tuple(shape), fixed, classes, model_bytes(path), preprocessing
    )


def _scores_among(outputs: Sequence[Any], named: str) -> Any:
    """Return the output that the file names, or else the first that may hold class scores, or else the first."""
    for output in outputs:
        if output.name == named:
            return output
    return next((output for output in outputs if _may_hold_scores(output)), outputs[0])


def _may_hold_scores(output: Any) -> bool:
    sizes = [size for size in output.shape[1:] if size != 1]
    return output.type == "tensor(float)" and len(sizes) == 1


def _hidden_batch(path: Path, session: ort.InferenceSession, name: str, output: str, shape: list[int]) -> int | None:
    """Return 1 if a graph with a free batch axis runs only at batch size 1, for example due to a Reshape; else None."""
    try:
        run_session(session, {name: np.zeros((1, *shape), np.float32)})
    except ORT_ERRORS as error:
        raise ModelError(f"{path}: onnxruntime cannot run it ({first_line(error)})") from error
    try:
        logits = run_session(session, {name: np.zeros((2, *shape), np.float32)}, [output])[0]
    except ORT_ERRORS:
        return 1
    return None if len(logits) == 2 else 1


def wilson(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the Wilson confidence interval of a proportion (E. B. Wilson, J. Am. Stat. Assoc. 22, 209, 1927).

    Parameters
    ----------
    successes : number of successes
    count : number of trials
    confidence : confidence level

    Returns
    -------
    tuple of float
        Lower and upper limit.
    """
    # imported here, because the import takes half a second and is needed only with labels
    from scipy.stats import binomtest

    found = binomtest(successes, count).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def paired_interval(
    ours: npt.NDArray[np.bool_], theirs: npt.NDArray[np.bool_], confidence: float = 0.95
) -> tuple[float, float]:
    """Compute the score interval of the difference of two accuracies on the same images.

    Source: T. Tango, Stat. Med. 17, 891, 1998. The interval contains every difference that the score test for paired
    data does not reject, so its width is not zero even if all pairs agree.

    Parameters
    ----------
    ours, theirs : ndarray of bool, [N]
        Whether each model classifies each image correctly.
    confidence : confidence level

    Returns
    -------
    tuple of float
        Lower and upper limit of the accuracy of `ours` minus that of `theirs`.
    """
    count = len(ours)
    gained, lost = int(np.sum(ours & ~theirs)), int(np.sum(theirs & ~ours))
    z2 = float(ndtri(0.5 + confidence / 2)) ** 2

    def rejected(difference: float) -> bool:
        # maximum-likelihood share of lost pairs, given that the share of gained pairs is larger by `difference`
        a, b = 2 * count, (2 * count - gained + lost) * difference - gained - lost
        c = -lost * difference * (1 - difference)
        share = (np.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = count * (2 * share + difference * (1 - difference))
        return bool((gained - lost - count * difference) ** 2 > z2 * variance)

    def limit(outermost: float) -> float:
        inside, outside = (gained - lost) / count, outermost
        if not rejected(outside):
            return outside
        # bisection down to floating-point precision
        while (middle := (inside + outside) / 2) not in (inside, outside):
            inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
        return inside

    return limit(-1.0), limit(1.0)


def evaluate_model(model: Classifier, dataset: Dataset, reference: Classifier | None = None) -> Evaluation:
    """Measure the accuracy, size and latency of a model, and compare it with a reference on the same images.

    Parameters
    ----------
    model : the model to measure
    dataset : images, with or without labels
    reference : a model with the same input; None measures only `model`

    Returns
    -------
    Evaluation

    Raises
    ------
    ModelError
        A model cannot be run, or the two models have different numbers of classes.
    """
    logits = model.logits(dataset)
    predictions = logits.argmax(axis=1)
    reference_logits = None if reference is None else reference.logits(dataset)
    if reference is not None and reference_logits is not None and reference_logits.shape != logits.shape:
        raise ModelError(
            f"{reference.path} has {reference_logits.shape[1]} classes, {model.path} has {logits.shape[1]}; give "
            f"{setting('against')} a model of the same classes"
        )
    other = None if reference_logits is None else reference_logits.argmax(axis=1)
    labels = dataset.labels
    right: npt.NDArray[np.bool_] | None = None if labels is None else predictions == labels
    other_right: npt.NDArray[np.bool_] | None = None if labels is None or other is None else other == labels
    difference = interval = None
    if right is not None and other_right is not None:
        difference = float(right.mean() - other_right.mean())
        interval = paired_interval(right, other_right)
    models = [m for m in (model, reference) if m is not None]
    # a model with a free batch uses the fixed batch size of the other model, so that the latencies are comparable
    common = max((m.batch for m in models if m.batch is not None), default=1)
    sizes = [m.batch or common for m in models]
    latencies = _latencies(models, sizes, dataset)
    return Evaluation(
        images=len(dataset),
        top1=None if right is None else float(right.mean()),
        top1_interval=None if right is None else wilson(int(right.sum()), len(right)),
        top5=None if labels is None else top_k(logits, labels, 5),
        agreement=None if other is None else float(np.mean(predictions == other)),
        reference_top1=None if other_right is None else float(other_right.mean()),
        top1_difference=difference,
        top1_difference_interval=interval,
        file_bytes=model.file_bytes,
        reference_bytes=None if reference is None else reference.file_bytes,
        latency_ms=latencies[0],
        reference_latency_ms=latencies[1] if reference is not None else None,
        latency_batch=sizes[0],
        reference_latency_batch=sizes[1] if reference is not None else None,
    )


def top_k(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], k: int) -> float | None:
    """Compute the top-k accuracy.

    Parameters
    ----------
    logits : ndarray of float32, [N, C]
    labels : ndarray of int64, [N]
    k : number of largest logits among which the label must be

    Returns
    -------
    float or None
        Share of images whose label is among the k largest logits; None if C ≤ k.
    """
    if logits.shape[1] <= k:
        return None
    best = np.argpartition(-logits, k - 1, axis=1)[:, :k]
    return float(np.mean((best == labels[:, None]).any(axis=1)))


def _latencies(models: Sequence[Classifier], sizes: Sequence[int], dataset: Dataset) -> list[float]:
    """Return the median duration of a run of each model, in milliseconds.

    The models run alternately, so that other load on the machine affects all of them equally.
    """
    times: list[list[float]] = [[] for _ in models]
    batches = [padded(next(iter(dataset.batches(size))), size) for size in sizes]
    for run in range(_LATENCY_WARM_UP + _LATENCY_RUNS):
        for index, (model, batch) in enumerate(zip(models, batches, strict=True)):
            start = time.perf_counter()
            model.run(batch)
            if run >= _LATENCY_WARM_UP:
                times[index].append(time.perf_counter() - start)
    return [1000 * statistics.median(values) for values in times]
