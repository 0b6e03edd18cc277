"""Local functions."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper

from infoq_onnx.graph.passes.inline_functions import inline_functions
from tests.graph.compare import apply, operators
from tests.networks import Builder, mlp


def with_function(function_opset: int) -> onnx.ModelProto:
    """Return an MLP whose two Relus are calls of a local function x·sigmoid(x)."""
    model = mlp()
    body = [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["b"])]
    imports = [helper.make_opsetid("", function_opset)]
    model.functions.append(helper.make_function("local", "Swish1", ["a"], ["b"], body, imports))
    model.opset_import.append(helper.make_opsetid("local", 1))
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type, node.domain = "Swish1", "local"
    return model


@pytest.mark.parametrize("opset", [17, 13])
def test_bodies_replace_calls(opset: int) -> None:
    edited, count = apply(inline_functions, with_function(opset))
    assert count == 1
    assert not edited.functions
    assert operators(edited) == ["Gemm", "Sigmoid", "Mul", "Gemm", "Sigmoid", "Mul", "Gemm"]


def test_model_without_functions_stays() -> None:
    assert inline_functions(mlp()) == 0


def test_nested_functions() -> None:
    b = Builder()
    b.nodes.append(helper.make_node("Outer", ["x"], ["y"], domain="local"))
    b.gemm("y", "fc", 6, 3)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    inner = helper.make_function("local", "Inner", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], imports)
    call = helper.make_node("Inner", ["a"], ["b"], domain="local")
    outer = helper.make_function("local", "Outer", ["a"], ["b"], [call], imports)
    gemm = b.model("fc_out", (6,), (3,), domains=("local",), functions=(inner, outer))
    edited, count = apply(inline_functions, gemm)
    assert count == 2
    assert operators(edited) == ["Relu", "Gemm"]
