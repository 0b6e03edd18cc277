"""Storage formats of weight codes in the file. Once loaded by onnxruntime, all formats give the same int8 tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from infoq_onnx.emit.storage import native as _native
from infoq_onnx.emit.storage.int8 import int8
from infoq_onnx.emit.storage.native import native
from infoq_onnx.emit.storage.packed import packed
from infoq_onnx.emit.storage.stored import DOMAIN, Stored
from infoq_onnx.quantize.codes import RoundedWeight


class Store(Protocol):
    """A function that stores the codes of one weight."""

    def __call__(self, name: str, held: RoundedWeight, axis: int, opset: int) -> Stored:
        """Return the constants and nodes that hold a weight. Every name in them starts with `name`.

        Parameters
        ----------
        name : name of the weight
        held : the rounded weight
        axis : channel axis of the weight
        opset : operator set version of the model

        Returns
        -------
        Stored
        """


@dataclass(frozen=True)
class Storage:
    """A storage format of weights."""

    store: Store
    opsets: Mapping[int, int] = field(default_factory=dict)
    """Bits → minimum operator set version. Other bit-widths work with any version."""

    def opset(self, bits: Iterable[int]) -> int:
        """Return the minimum operator set version for weights of the given bit-widths."""
        return max((self.opsets.get(b, 0) for b in bits), default=0)


STORAGES: dict[str, Storage] = {
    "packed": Storage(packed),
    "native": Storage(native, _native.OPSETS),
    "int8": Storage(int8),
}

__all__ = ["DOMAIN", "STORAGES", "Storage", "Store", "Stored", "int8", "native", "packed"]
