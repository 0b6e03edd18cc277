"""How weight codes lie in the file. One file each; all give the same int8 tensor once onnxruntime has loaded them."""

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
    """Stores the codes of one weight."""

    def __call__(self, name: str, held: RoundedWeight, axis: int, opset: int) -> Stored:
        """Return the constants and nodes that hold a weight; every name in them starts with `name`.

        Parameters
        ----------
        name : of the weight
        held : the weight
        axis : its channel axis
        opset : the model's operator set
        """


@dataclass(frozen=True)
class Storage:
    """A way to store weights."""

    store: Store
    opsets: Mapping[int, int] = field(default_factory=dict)
    """Bits → the operator set that they need; any will do where nothing is said."""

    def opset(self, bits: Iterable[int]) -> int:
        """Least operator set for weights of these widths."""
        return max((self.opsets.get(b, 0) for b in bits), default=0)


STORAGES: dict[str, Storage] = {
    "packed": Storage(packed),
    "native": Storage(native, _native.OPSETS),
    "int8": Storage(int8),
}

__all__ = ["DOMAIN", "STORAGES", "Storage", "Store", "Stored", "int8", "native", "packed"]
