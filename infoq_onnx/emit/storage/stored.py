"""What a storage returns."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

DOMAIN = "infoq_onnx"
"""Of the local functions, which every emitted file carries itself."""


@dataclass(frozen=True)
class Stored:
    """Constants that hold a weight's codes, and what turns them into an int8 tensor."""

    output: str
    """The int8 tensor, in the weight's shape."""
    initializers: tuple[onnx.TensorProto, ...]
    node: onnx.NodeProto | None = None
    """None where an initializer is the tensor itself."""
    function: onnx.FunctionProto | None = None
    """The local function that `node` calls; the same for all weights of a bit-width."""

    @property
    def bytes(self) -> int:
        """Bytes of data in the file, names and framing aside."""
        return sum(len(tensor.raw_data) for tensor in self.initializers)
