"""The default encoder: principal components of the inputs."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.linalg

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.data.encoders.resample import resize
from infoq_onnx.errors import DataError

COMPONENTS = 64
SIDE = 32
"""Images are reduced to at most this many pixels per side, because finer detail hardly affects the first components."""


def encode(dataset: Dataset, batch: int) -> npt.NDArray[np.float64]:
    """Compute the scores of the inputs on their principal components, in order of decreasing variance.

    Parameters
    ----------
    dataset
        The inputs.
    batch
        Number of inputs read at a time.

    Returns
    -------
    scores : ndarray of float64, [N, e]
        Unwhitened scores with e ≤ min(64, N − 1). The sign of each component is chosen so that the score with the
        largest absolute value is positive.

    Raises
    ------
    DataError
        All inputs are equal, or there is only one.
    """
    rows = [_flat(tensors, dataset.layout) for tensors in dataset.batches(batch)]
    return components(np.concatenate(rows), COMPONENTS)


def components(features: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.float64]:
    """Compute the scores of features on their first principal components, in order of decreasing variance.

    For the centred features X = UΣVᵀ, the scores XV = UΣ are computed from the smaller of XᵀX = VΣ²Vᵀ and XXᵀ = UΣ²Uᵀ.

    Parameters
    ----------
    features : ndarray of floats, [N, d]
    count
        Maximum number of components.

    Returns
    -------
    scores : ndarray of float64, [N, e]
        Unwhitened scores with e ≤ min(count, N − 1, d). Components without variance are left out.

    Raises
    ------
    DataError
        All rows are equal, or there is only one.
    """
    centred = features - features.mean(axis=0, dtype=np.float64)
    samples, width = centred.shape
    dual = samples <= width
    gram = centred @ centred.T if dual else centred.T @ centred
    order = len(gram)
    wanted = min(count, samples - 1, order)
    if wanted < 1 or not gram.any():
        raise DataError(f"the {samples} inputs do not differ: principal components need two different ones or more")
    variance, vectors = scipy.linalg.eigh(gram, subset_by_index=(order - wanted, order - 1))
    variance, vectors = variance[::-1], vectors[:, ::-1]
    real = variance > variance[0] * order * np.finfo(np.float64).eps
    variance, vectors = variance[real], vectors[:, real]
    scores = vectors * np.sqrt(variance) if dual else centred @ vectors
    largest = scores[np.abs(scores).argmax(axis=0), np.arange(scores.shape[1])]
    return np.asarray(scores * np.sign(largest), np.float64)


def _flat(tensors: npt.NDArray[np.float32], layout: Literal["NCHW", "NHWC"] | None) -> npt.NDArray[np.float32]:
    if layout is not None:
        images = tensors if layout == "NCHW" else tensors.transpose(0, 3, 1, 2)
        tensors = resize(images, min(SIDE, images.shape[2]), min(SIDE, images.shape[3]))
    return tensors.reshape(len(tensors), -1)
