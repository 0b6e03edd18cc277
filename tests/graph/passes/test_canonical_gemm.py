"""The one form of Gemm."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from infoq_onnx.graph.editing import attribute, initializers_of
from infoq_onnx.graph.passes.canonical_gemm import canonical_gemm
from tests.graph.compare import apply
from tests.networks import Builder, mlp


def gemm(bias: tuple[int, ...] | None, **attributes: float) -> onnx.ModelProto:
    b = Builder()
    shape = (3, 4) if attributes.get("transB") else (4, 3)
    inputs = ["x", b.normal("w", *shape)]
    if bias is not None:
        inputs.append(b.constant("c", b.random.standard_normal(bias)))
    return b.model(b.op("Gemm", inputs, "fc", **attributes), (4,), (3,), batch=2)


@pytest.mark.parametrize("bias", [None, (), (1,), (3,), (1, 3), (1, 1)])
@pytest.mark.parametrize("transposed", [0, 1])
def test_weight_and_bias_take_one_form(bias: tuple[int, ...] | None, transposed: int) -> None:
    edited, count = apply(canonical_gemm, gemm(bias, alpha=0.5, beta=-2.0, transB=transposed))
    assert count == 1
    (node,) = edited.graph.node
    assert (attribute(node, "alpha"), attribute(node, "transB")) == (1.0, 1)
    constants = initializers_of(edited.graph)
    assert list(constants[node.input[1]].dims) == [3, 4]
    if bias is not None:
        assert attribute(node, "beta") == 1.0
        assert list(constants[node.input[2]].dims) == [3]


@pytest.mark.parametrize("bias", [(2, 3), (2, 1)])
def test_bias_that_differs_by_row_keeps_its_shape(bias: tuple[int, ...]) -> None:
    edited, count = apply(canonical_gemm, gemm(bias, beta=3.0))
    assert count == 1
    assert tuple(initializers_of(edited.graph)["c"].dims) == bias


def test_shared_weight_stays_for_the_other_reader() -> None:
    b = Builder()
    weight = b.normal("w", 4, 4)
    first = b.op("Gemm", ["x", weight], "fc1")
    second = b.op("MatMul", [first, weight], "product")
    edited, count = apply(canonical_gemm, b.model(second, (4,), (4,)))
    assert count == 1
    assert edited.graph.node[1].input[1] == "w"
    assert edited.graph.node[0].input[1] != "w"


def test_one_bias_for_two_widths() -> None:
    b = Builder()
    b.constant("c", [0.5])
    first = b.op("Gemm", ["x", b.normal("w1", 4, 6), "c"], "fc1")
    second = b.op("Gemm", [first, b.normal("w2", 6, 3), "c"], "fc2")
    _, count = apply(canonical_gemm, b.model(second, (4,), (3,)))
    assert count == 2


def test_canonical_and_weightless_gemm_stay() -> None:
    assert canonical_gemm(mlp()) == 0
    b = Builder()
    y = b.op("Gemm", ["x", "x"], "gram", transB=1)
    assert canonical_gemm(b.model(y, (4,), (2,), batch=2)) == 0


def test_double_weight_stays_double() -> None:
    b = Builder()
    b.constant("w", np.ones((4, 3)), np.float64)
    x = b.op("Cast", ["x"], "double", to=onnx.TensorProto.DOUBLE)
    y = b.op("Gemm", [x, "w"], "fc")
    edited, _ = apply(canonical_gemm, b.model(b.op("Cast", [y], "single", to=onnx.TensorProto.FLOAT), (4,), (3,)))
    assert initializers_of(edited.graph)["w"].data_type == onnx.TensorProto.DOUBLE
