"""DINOv2's features (Oquab et al., 2023, arXiv 2304.07193), the paper's choice of X_E; needs a download once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.data.encoders import onnx_file
from infoq_onnx.errors import MissingDependencyError

REPOSITORY = "onnx-community/dinov2-small"
FILE = "onnx/model.onnx"
REVISION = "8b1f705a3a7f6f062f6bdd21986c1583d3ef105d"
"""Pinned: other weights would be another encoder under the same name."""


def encode(dataset: Dataset, batch: int) -> npt.NDArray[np.float64]:
    """Return the class token of DINOv2 ViT-S/14 for every image, float64 [N, 384].

    Raises
    ------
    MissingDependencyError
        huggingface_hub is not installed, or the file is neither in its cache nor reachable.
    ModelError
        The samples are not images.
    """
    return onnx_file.encode(fetch(), dataset, batch)


def fetch() -> Path:
    """Return the file, downloaded when it is not there yet.

    Raises
    ------
    MissingDependencyError
        As for `encode`.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise MissingDependencyError(
            'the encoder dinov2 needs huggingface_hub: pip install "infoq-onnx[dinov2]", or use `encoder` pca'
        ) from error
    try:
        return Path(hf_hub_download(repo_id=REPOSITORY, filename=FILE, revision=REVISION))
    # no network, offline mode and HTTP errors are OSErrors there; a file missing from the cache was once a ValueError
    except (OSError, ValueError) as error:
        raise MissingDependencyError(
            f"cannot download DINOv2 ({type(error).__name__}): fetch {FILE} of https://huggingface.co/{REPOSITORY} "
            "elsewhere and pass `encoder` path/to/model.onnx, or use `encoder` pca"
        ) from error
