"""The name of the batch axis."""

from __future__ import annotations

import pytest

from infoq_onnx.graph.passes.name_batch_axis import name_batch_axis
from tests.graph.compare import apply
from tests.networks import mlp


@pytest.mark.parametrize("size", [None, 0, -1])
def test_free_axis_is_named(size: int | None) -> None:
    model = mlp()
    axis = model.graph.input[0].type.tensor_type.shape.dim[0]
    axis.Clear()
    if size is not None:
        axis.dim_value = size
    model.graph.output[0].type.tensor_type.shape.dim[0].Clear()
    assert name_batch_axis(model) == 1
    assert axis.dim_param == "batch"
    assert name_batch_axis(model) == 0


def test_name_in_use_is_avoided() -> None:
    model = mlp()
    model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    edited, count = apply(name_batch_axis, model)
    assert count == 1
    assert edited.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch_2"


@pytest.mark.parametrize("batch", [None, 3])
def test_named_and_fixed_axes_stay(batch: int | None) -> None:
    assert name_batch_axis(mlp(batch=batch)) == 0
