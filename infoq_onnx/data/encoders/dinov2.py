"""DINOv2 features (Oquab et al., 2023, arXiv 2304.07193), which the paper uses for X_E. They need a download once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.data.encoders import onnx_file
from infoq_onnx.errors import MissingDependencyError, setting

REPOSITORY = "onnx-community/dinov2-small"
FILE = "onnx/model.onnx"
REVISION = "8b1f705a3a7f6f062f6bdd21986c1583d3ef105d"
"""Pinned revision, because other weights would be a different encoder under the same name."""


def encode(dataset: Dataset, batch: int) -> npt.NDArray[np.float64]:
    """Compute the class token of DINOv2 ViT-S/14 for every image.

    Parameters
    ----------
    dataset
        The images.
    batch
        Number of images per run.

    Returns
    -------
    features : ndarray of float64, [N, 384]

    Raises
    ------
    MissingDependencyError
        huggingface_hub is not installed, or the file is not in its cache and cannot be downloaded.
    ModelError
        The samples are not images.
    """
    return onnx_file.encode(fetch(), dataset, batch)


def fetch() -> Path:
    """Return the path of the model file, downloaded if it is not in the cache.

    Raises
    ------
    MissingDependencyError
        See `encode`.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise MissingDependencyError(
            'the encoder dinov2 needs huggingface_hub: pip install "infoq-onnx[dinov2]", or use '
            f"{setting('encoder')} pca"
        ) from error
    try:
        return Path(hf_hub_download(repo_id=REPOSITORY, filename=FILE, revision=REVISION))
    # huggingface_hub raises OSError without network, in offline mode and for HTTP errors; older versions raised
    # ValueError for a file missing from the cache
    except (OSError, ValueError) as error:
        raise MissingDependencyError(
            f"cannot download DINOv2 ({type(error).__name__}): fetch {FILE} of https://huggingface.co/{REPOSITORY} "
            f"elsewhere and pass {setting('encoder')} path/to/model.onnx, or use {setting('encoder')} pca"
        ) from error
