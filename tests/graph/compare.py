"""Running a graph before and after it is edited."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from infoq_onnx.graph.ort import run


def random_input(model: onnx.ModelProto, batch: int = 2, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Standard normal values for the model's one input (those that are no initializers)."""
    constants = {tensor.name for tensor in model.graph.initializer}
    value = next(value for value in model.graph.input if value.name not in constants)
    sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    shape = (sizes[0] or batch, *sizes[1:])
    return {value.name: np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)}


def assert_same_outputs(before: onnx.ModelProto, after: onnx.ModelProto, batch: int = 2) -> None:
    """Every output, under its name, differs by at most 1e-4 of its range."""
    feeds = random_input(before, batch)
    names = [value.name for value in before.graph.output]
    assert [value.name for value in after.graph.output] == names
    for name, expected, found in zip(names, run(before, feeds), run(after, feeds), strict=True):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4 * max(np.ptp(expected), 1e-6), name


def apply(run_pass: Any, model: onnx.ModelProto, batch: int = 2) -> tuple[onnx.ModelProto, int]:
    """Run a pass on a copy: the result is valid and computes the same, and a second run changes nothing."""
    edited = onnx.ModelProto()
    edited.CopyFrom(model)
    count = run_pass(edited)
    onnx.checker.check_model(edited, full_check=True)
    assert_same_outputs(model, edited, batch)
    again = onnx.ModelProto()
    again.CopyFrom(edited)
    assert run_pass(again) == 0
    assert again == edited
    return edited, count


def operators(model: onnx.ModelProto) -> list[str]:
    """Operator types in graph order."""
    return [node.op_type for node in model.graph.node]
