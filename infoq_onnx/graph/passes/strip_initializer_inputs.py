"""Initializers that are listed among the graph inputs, as IR version 3 demanded, become plain constants."""

from __future__ import annotations

import onnx


def strip_initializer_inputs(model: onnx.ModelProto) -> int:
    """Remove from the graph inputs those that an initializer gives a value.

    Returns
    -------
    int
        Number of inputs removed.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    listed = [value for value in model.graph.input if value.name in constants]
    for value in listed:
        model.graph.input.remove(value)
    return len(listed)
