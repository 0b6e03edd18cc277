"""The result of a storage format."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

DOMAIN = "infoq_onnx"
"""Domain of the local functions, which every emitted file contains."""


@dataclass(frozen=True)
class Stored:
    """Constants that hold the codes of a weight, and the node that converts them to an int8 tensor."""

    output: str
    """Name of the int8 tensor, which has the weight's shape."""
    initializers: tuple[onnx.TensorProto, ...]
    node: onnx.NodeProto | None = None
    """Node that computes the tensor; None if the tensor is an initializer."""
    function: onnx.FunctionProto | None = None
    """Local function that `node` calls. Functions with the same name are identical."""

    @property
    def bytes(self) -> int:
        """Bytes of data in the file, without names and framing."""
        return sum(len(tensor.raw_data) for tensor in self.initializers)
