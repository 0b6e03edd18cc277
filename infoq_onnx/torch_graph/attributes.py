"""The attributes of a node, with ONNX's defaults, in Python types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import onnx

from infoq_onnx.graph.editing import attribute

T = TypeVar("T")

Operator = Callable[..., Any]
"""A function that executes nodes of one operator; see `torch_graph.operators`."""


class Attributes:
    """The attributes of a node.

    Parameters
    ----------
    node : the node
    opset : version of the default operator set

    Attributes
    ----------
    opset : int
        Version of the default operator set.
    outputs : int
        Number of outputs that the node declares.
    """

    def __init__(self, node: onnx.NodeProto, opset: int) -> None:
        self._node = node
        self.opset = opset
        self.outputs = len(node.output)

    def get(self, name: str, default: T) -> T:
        """Return an attribute in the type of its default (lists become tuples), or the default if it is absent."""
        found = attribute(self._node, name)
        if found is None:
            return default
        if isinstance(found, bytes):
            return found.decode()  # type: ignore[return-value]
        return tuple(found) if isinstance(default, tuple) else found  # type: ignore[return-value]

    def ints(self, name: str) -> list[int] | None:
        """Return a list of integers; None if it is absent."""
        found = attribute(self._node, name)
        return None if found is None else list(found)

    def tensor(self, name: str) -> onnx.TensorProto | None:
        """Return a constant tensor; None if it is absent."""
        found: onnx.TensorProto | None = attribute(self._node, name)
        return found
