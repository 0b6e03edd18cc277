"""Shared weights."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from infoq_onnx.graph.editing import initializers_of
from infoq_onnx.graph.passes.unshare_initializers import unshare_initializers
from tests.graph.compare import apply
from tests.networks import Builder, residual_convnet


def test_first_layer_keeps_the_original() -> None:
    b = Builder()
    weight, bias = b.normal("w", 4, 4, fan_in=4), b.constant("b", np.ones(4))
    y = b.op("Gemm", ["x", weight, bias], "fc1", transB=1)
    y = b.op("Gemm", [y, weight, bias], "fc2", transB=1)
    y = b.op("MatMul", [y, weight], "product")
    edited, count = apply(unshare_initializers, b.model(y, (4,), (4,)))
    assert count == 3
    inputs = [name for node in edited.graph.node for name in node.input if name in initializers_of(edited.graph)]
    assert len(inputs) == len(set(inputs)) == 5
    assert list(edited.graph.node[0].input) == ["x", "w", "b"]


def test_copy_when_other_nodes_or_outputs_use_it() -> None:
    b = Builder()
    weight = b.normal("w", 4, 4, fan_in=4)
    y = b.op("Add", [b.op("MatMul", ["x", weight], "product"), b.op("ReduceSum", [weight], "sum", keepdims=0)], "add")
    y = b.op("MatMul", [y, b.normal("w2", 4, 3, fan_in=4)], "last")
    model = b.model(y, (4,), (3,))
    model.graph.output.append(helper.make_tensor_value_info("w2", TensorProto.FLOAT, [4, 3]))
    edited, count = apply(unshare_initializers, model)
    assert count == 2
    assert edited.graph.node[0].input[1] == "w_2"


def test_unshared_network_stays() -> None:
    assert unshare_initializers(residual_convnet()) == 0
