"""Nodes with constant inputs."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from infoq_onnx.errors import ModelError
from infoq_onnx.graph.editing import initializers_of, to_array
from infoq_onnx.graph.passes import fold_constants as module
from infoq_onnx.graph.passes.fold_constants import fold_constants
from tests.graph.compare import apply, operators
from tests.networks import Builder


def test_chains_are_computed_and_only_their_end_is_stored() -> None:
    b = Builder()
    b.constant("w", np.arange(12).reshape(3, 4))
    turned = b.op("Transpose", ["w"], "turn", perm=[1, 0])
    scaled = b.op("Mul", [turned, b.constant("two", 2.0)], "scale")
    model = b.model(b.op("MatMul", ["x", scaled], "product"), (4,), (3,))
    edited, count = apply(fold_constants, model)
    assert count == 2
    assert operators(edited) == ["MatMul"]
    constants = initializers_of(edited.graph)
    np.testing.assert_array_equal(to_array(constants["scale_out"]), 2.0 * np.arange(12).reshape(3, 4).T)
    assert "turn_out" not in constants


def test_pad_computation_of_torch_is_folded() -> None:
    """Exporters write constant padding as ConstantOfShape, Concat, Slice, Transpose, Cast."""
    b = Builder()
    zeros = b.op("ConstantOfShape", [b.constant("four", [2], np.int64)], "zeros", value=_int_tensor(0))
    pads = b.op("Concat", [b.constant("p", [1, 1, 0, 0], np.int64), zeros], "pads", axis=0)
    pairs = b.op("Reshape", [pads, b.constant("pairs", [-1, 2], np.int64)], "pair")
    turned = b.op("Transpose", [pairs], "turn", perm=[1, 0])
    flat = b.op("Reshape", [turned, b.constant("flat", [-1], np.int64)], "flatten")
    y = b.op("Pad", ["x", b.op("Cast", [flat], "cast", to=TensorProto.INT64)], "pad")
    edited, count = apply(fold_constants, b.model(y, (4, 4), (4, 4)))
    assert count == 6
    assert operators(edited) == ["Pad"]


def _int_tensor(value: int) -> TensorProto:
    return numpy_helper.from_array(np.array([value], dtype=np.int64))


def test_result_that_would_swell_the_file_keeps_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_RESULT", 100)
    b = Builder()
    big = b.op("Expand", [b.constant("one", [1.0]), b.constant("shape", [64], np.int64)], "expand")
    small = b.op("Neg", [b.constant("bias", np.ones(64))], "negate")
    y = b.op("Add", [b.op("Add", ["x", big], "add1"), small], "add2")
    edited, count = apply(fold_constants, b.model(y, (64,), (64,)))
    assert count == 1  # 256 bytes either way: the negated bias is not larger than the bias
    assert operators(edited) == ["Expand", "Add", "Add"]


def test_random_quantizing_and_output_nodes_stay() -> None:
    b = Builder()
    b.constant("codes", [1, 2, 3], np.int8)
    weight = b.op("DequantizeLinear", ["codes", b.constant("scale", 0.5), b.constant("zero", 0, np.int8)], "dequantize")
    noise = b.op("RandomNormalLike", [weight], "noise", seed=1.0)
    y = b.op("Add", [b.op("Add", ["x", weight], "add1"), noise], "add2")
    model = b.model(y, (3,), (3,))
    model.graph.node.append(helper.make_node("Neg", ["scale"], ["negative"]))
    model.graph.output.append(helper.make_tensor_value_info("negative", TensorProto.FLOAT, []))
    _, count = apply(fold_constants, model)
    assert count == 0


def test_a_constant_that_cannot_be_computed_is_told() -> None:
    b = Builder()
    pooled = b.op("GlobalAveragePool", [b.constant("flat", np.ones((2, 3)))], "gap")
    model = helper.make_model(
        helper.make_graph(
            [*b.nodes, helper.make_node("Add", ["x", pooled], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
            [numpy_helper.from_array(b.weights["flat"].astype(np.float32), "flat")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    with pytest.raises(ModelError, match=r"cannot compute what depends on no input: .*GlobalAveragePool.*export"):
        fold_constants(model)
