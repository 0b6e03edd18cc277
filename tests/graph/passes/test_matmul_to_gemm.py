"""Dense layers written as MatMul and Add."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from infoq_onnx.graph.normalize import normalize
from infoq_onnx.graph.passes.matmul_to_gemm import matmul_to_gemm
from tests.graph.compare import apply, operators
from tests.networks import Builder


def dense(row: tuple[int, ...] = (5,), *, first: bool = False, second_reader: bool = False) -> Builder:
    """An input [N, 8] or of more axes, times [8, 5], plus a constant."""
    b = Builder()
    product = b.op("MatMul", ["x", b.normal("w", 8, 5, fan_in=8)], "dense")
    bias = b.normal("bias", *row)
    total = b.op("Add", [bias, product] if first else [product, bias], "added")
    if second_reader:
        total = b.op("Mul", [total, product], "both")
    b.op("Elu", [total], "elu")
    return b


@pytest.mark.parametrize("row", [(5,), (1, 5)])
@pytest.mark.parametrize("first", [False, True])
def test_each_way_to_add_a_row(row: tuple[int, ...], first: bool) -> None:
    edited, count = apply(matmul_to_gemm, dense(row, first=first).model("elu_out", (8,), (5,)))
    assert count == 1
    assert operators(edited) == ["Gemm", "Elu"]
    assert edited.graph.node[0].name == "dense"
    assert list(edited.graph.node[0].output) == ["added_out"]


def test_normal_form_has_a_gemm_of_it() -> None:
    gemm = normalize(dense((1, 5)).model("elu_out", (8,), (5,))).graph.node[0]
    assert gemm.op_type == "Gemm"
    assert {a.name: helper.get_attribute_value(a) for a in gemm.attribute}["transB"] == 1


def test_products_of_tokens_stay() -> None:
    _, count = apply(matmul_to_gemm, dense().model("elu_out", (3, 8), (3, 5)))
    assert count == 0


@pytest.mark.parametrize("row", [(1,), (), (1, 1, 5)])
def test_what_is_no_row_stays(row: tuple[int, ...]) -> None:
    shape = (1, 5) if len(row) == 3 else (5,)
    edited, count = apply(matmul_to_gemm, dense(row).model("elu_out", (8,), shape))
    assert count == 1
    assert operators(edited) == ["Gemm", "Add", "Elu"]


def test_a_product_that_something_else_reads_keeps_its_add() -> None:
    edited, _ = apply(matmul_to_gemm, dense(second_reader=True).model("elu_out", (8,), (5,)))
    assert operators(edited) == ["Gemm", "Add", "Mul", "Elu"]
    model = dense().model("elu_out", (8,), (5,))
    model.graph.output.append(helper.make_tensor_value_info("dense_out", TensorProto.FLOAT, ["batch", 5]))
    edited, _ = apply(matmul_to_gemm, model)
    assert operators(edited) == ["Gemm", "Add", "Elu"]


def test_products_of_integers_stay() -> None:
    b = Builder()
    whole = b.op("Cast", ["x"], "whole", to=TensorProto.INT32)
    y = b.op("MatMul", [whole, b.constant("w", np.arange(40).reshape(8, 5), np.int32)], "dense")
    model = b.model(b.op("Cast", [y], "back", to=TensorProto.FLOAT), (8,), (5,))
    _, count = apply(matmul_to_gemm, model)
    assert count == 0


def test_constants_on_the_left_stay() -> None:
    b = Builder()
    y = b.op("MatMul", [b.normal("left", 5, 4), b.normal("right", 4, 8)], "constant")
    y = b.op("MatMul", [y, b.op("Transpose", ["x"], "turned", perm=[1, 0])], "dense")
    model = b.model(b.op("Transpose", [y], "back", perm=[1, 0]), (8,), (5,))
    _, count = apply(matmul_to_gemm, model)
    assert count == 0
