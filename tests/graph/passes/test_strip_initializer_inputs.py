"""Initializers among the graph inputs."""

from __future__ import annotations

from onnx import helper

from infoq_onnx.graph.passes.strip_initializer_inputs import strip_initializer_inputs
from tests.graph.compare import apply
from tests.networks import mlp


def test_only_the_image_stays_an_input() -> None:
    model = mlp()
    for tensor in model.graph.initializer:
        model.graph.input.insert(0, helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    edited, count = apply(strip_initializer_inputs, model)
    assert count == 6
    assert [value.name for value in edited.graph.input] == ["x"]
