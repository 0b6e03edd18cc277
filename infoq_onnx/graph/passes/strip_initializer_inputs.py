"""Remove initializers from the graph inputs, where IR version 3 required them, so that they become constants."""

from __future__ import annotations

import onnx


def strip_initializer_inputs(model: onnx.ModelProto) -> int:
    """Remove the graph inputs that have an initializer.

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
