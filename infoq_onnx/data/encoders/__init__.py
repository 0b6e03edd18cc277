"""Encoders: what X_E is in SMI(X_E; L), a short vector of features of every input.

The paper takes DINOv2's features. The default, `pca`, needs no download. `self`, the model's own penultimate features,
is built by the caller on `onnx_file.encode`, for it is the caller who has the model.
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
from infoq_onnx.errors import SettingsError


class Encoder(Protocol):
    """Condenses every sample of a dataset into a vector."""

    def __call__(self, dataset: Dataset, batch: int) -> npt.NDArray[np.float64]:
        """Return float64 [N, e], reading `batch` samples at a time."""
        ...


ENCODERS: dict[str, Encoder] = {"pca": pca.encode, "dinov2": dinov2.encode}


def get_encoder(name: str) -> Encoder:
    """Look an encoder up by name, or make one of an ONNX file.

    Raises
    ------
    SettingsError
        Neither a name nor a file.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    if Path(name).suffix.lower() != ".onnx":
        raise SettingsError(
            f"unknown encoder {name!r}: choose {', '.join(ENCODERS)}, self, or the path of an .onnx file"
        )
    if not os.path.isfile(name):
        raise SettingsError(f"no such encoder file: {name}")
    return partial(onnx_file.encode, Path(name))


def encoder_file(name: str) -> Path | None:
    """Return the file of the model behind an encoder; None where it needs none.

    Raises
    ------
    MissingDependencyError
        It is to be downloaded, and cannot be.
    """
    if name == "dinov2":
        return dinov2.fetch()
    return Path(name) if Path(name).suffix.lower() == ".onnx" else None
