"""Einsum that is a product of matrices computes the same as a MatMul."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from infoq_onnx.graph.passes.einsum_to_matmul import einsum_to_matmul
from tests.graph.compare import assert_same_outputs

SIZES = dict(zip("bhijkn", (2, 3, 4, 5, 6, 7), strict=True))


def model(equation: str, *, constant: bool) -> onnx.ModelProto:
    """A model of one Einsum; its second operand is a constant, or computed from the input's first values."""
    operands, result = equation.replace(" ", "").split("->")
    left, right = operands.split(",")
    shapes = [[SIZES[letter] for letter in letters] for letters in (left, right, result)]
    values = np.random.default_rng(0).standard_normal(shapes[1]).astype(np.float32)
    constants = [numpy_helper.from_array(values, "w")]
    nodes = [helper.make_node("Einsum", ["x", "w"], ["y"], "product", equation=equation)]
    if not constant:
        constants.append(numpy_helper.from_array(np.array(0), "first"))
        nodes = [
            helper.make_node("Gather", ["flat", "first"], ["one"], axis=1),
            helper.make_node("ReduceMean", ["one"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["w", "mean"], ["v"]),
            helper.make_node("Einsum", ["x", "v"], ["y"], "product", equation=equation),
        ]
        nodes.insert(0, helper.make_node("Flatten", ["x"], ["flat"]))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip("xy", shapes[::2], strict=True)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("equation", "constant", "operators"),
    [
        ("bk,kn->bn", True, ["MatMul"]),
        ("bik,kn->bin", True, ["MatMul"]),
        ("b i k, n k -> b i n", True, ["Transpose", "MatMul"]),
        ("bhik,bhjk->bhij", False, ["Transpose", "MatMul"]),
        ("bhij,bhjk->bhik", False, ["MatMul"]),
        ("bik,kn->bni", True, ["Einsum"]),
        ("bik,bk->bi", True, ["Einsum"]),
        ("bhik,hjk->bhij", True, ["Einsum"]),
        ("bik,ik->bi", True, ["Einsum"]),
    ],
)
def test_it_computes_the_same(equation: str, constant: bool, operators: list[str]) -> None:
    before = model(equation, constant=constant)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    assert einsum_to_matmul(after) == ("Einsum" not in operators)
    assert [node.op_type for node in after.graph.node][-len(operators) :] == operators
    assert [node.name for node in after.graph.node][-1] == "product"
    onnx.checker.check_model(after, full_check=True)
    assert_same_outputs(before, after)
