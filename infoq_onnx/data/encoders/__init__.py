"""Encoders compute X_E in SMI(X_E; L): a short feature vector for every input.

The paper uses DINOv2 features. The default encoder, `pca`, needs no download. The encoder `self` uses the penultimate
features of the model itself; the caller, which has the model, builds it from `onnx_file.encode`.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.data.encoders import dinov2, onnx_file, pca
from infoq_onnx.errors import SettingsError, setting


class Encoder(Protocol):
    """A function that computes a feature vector for every sample of a dataset."""

    def __call__(self, dataset: Dataset, batch: int) -> npt.NDArray[np.float64]:
        """Return features of shape [N, e], float64. The dataset is read in batches of `batch` samples."""
        ...


ENCODERS: dict[str, Encoder] = {"pca": pca.encode, "dinov2": dinov2.encode}


def get_encoder(name: str) -> Encoder:
    """Return the encoder with the given name, or an encoder that runs an ONNX file.

    Raises
    ------
    SettingsError
        `name` is neither the name of an encoder nor an existing .onnx file.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    if Path(name).suffix.lower() != ".onnx":
        raise SettingsError(
            f"{setting('encoder')} {name!r}: choose {', '.join(ENCODERS)}, self, or the path of an .onnx file"
        )
    if not os.path.isfile(name):
        raise SettingsError(f"{setting('encoder')} {name}: no such file")
    return partial(onnx_file.encode, Path(name))


def encoder_file(name: str) -> Path | None:
    """Return the path of the model that an encoder runs, downloaded if necessary; None if it runs no model.

    Raises
    ------
    MissingDependencyError
        The model cannot be downloaded.
    """
    if name == "dinov2":
        return dinov2.fetch()
    return Path(name) if Path(name).suffix.lower() == ".onnx" else None
