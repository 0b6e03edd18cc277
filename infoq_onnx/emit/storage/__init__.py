"""How weight codes lie in the file. One file each; all give the same int8 tensor once onnxruntime has loaded them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from infoq_onnx.emit.storage.int8 import int8
from infoq_onnx.emit.storage.packed import DOMAIN, packed
from infoq_onnx.emit.storage.stored import Stored


class Storage(Protocol):
    """Stores the codes of one weight."""

    def __call__(self, name: str, codes: npt.NDArray[np.int8], bits: int, opset: int) -> Stored:
        """Return what holds `codes`, all within `bits` bits; every name in it starts with `name`."""


STORAGES: dict[str, Storage] = {"packed": packed, "int8": int8}

__all__ = ["DOMAIN", "STORAGES", "Storage", "Stored", "int8", "packed"]
