"""Identity and Dropout."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from infoq_onnx.graph.passes.remove_identity import remove_identity
from tests.graph.compare import apply, operators
from tests.networks import Builder


def test_identity_between_nodes_and_behind_initializers() -> None:
    b = Builder()
    b.constant("shared", np.full(4, 0.5))
    copy = b.op("Identity", ["shared"], "copy")
    copy = b.op("Identity", [copy], "copy2")
    weight = b.normal("w", 4, 3, 3, 3, fan_in=27)
    y = b.op("Conv", ["x", weight, copy], "conv", pads=[1, 1, 1, 1])
    y = b.op("Identity", [y], "middle")
    y = b.classifier(b.relu(y, "relu"), 4, 3)
    edited, count = apply(remove_identity, b.model(y, (3, 8, 8), (3,)))
    assert count == 3
    assert edited.graph.node[0].input[2] == "shared"
    assert operators(edited) == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]


def test_output_keeps_its_name() -> None:
    b = Builder()
    hidden = b.gemm("x", "fc", 4, 3)
    b.op("Relu", [hidden], "side")
    model = b.model(b.op("Identity", [hidden], "copy"), (4,), (3,))
    edited, count = apply(remove_identity, model)
    assert count == 1
    assert [list(node.input)[:1] for node in edited.graph.node] == [["x"], ["logits"]]


def test_identity_of_the_input_or_of_another_output_stays() -> None:
    b = Builder()
    y = b.op("Identity", [b.gemm("x", "fc", 4, 3)], "copy")
    model = b.model(y, (4,), (3,))
    model.graph.node.append(helper.make_node("Identity", ["x"], ["same"]))
    model.graph.output.append(helper.make_tensor_value_info("same", TensorProto.FLOAT, ["batch", 4]))
    model.graph.output.append(helper.make_tensor_value_info("fc_out", TensorProto.FLOAT, ["batch", 3]))
    _, count = apply(remove_identity, model)
    assert count == 0


def test_dropout_at_inference() -> None:
    b = Builder()
    y = b.op("Dropout", [b.gemm("x", "fc1", 4, 6), b.constant("ratio", 0.5)], "drop1", ["y1", "mask1"])
    y = b.op("Dropout", [y, "ratio", b.constant("training", False, bool)], "drop2")
    edited, count = apply(remove_identity, b.model(b.gemm(y, "fc2", 6, 3), (4,), (3,)))
    assert count == 2
    assert operators(edited) == ["Gemm", "Gemm"]


def test_dropout_whose_mask_is_read_stays() -> None:
    b = Builder()
    y = b.op("Dropout", [b.gemm("x", "fc1", 4, 3)], "drop", ["y1", "mask1"])
    mask = b.op("Cast", ["mask1"], "cast", to=TensorProto.FLOAT)
    _, count = apply(remove_identity, b.model(b.op("Mul", [y, mask], "mul"), (4,), (3,)))
    assert count == 0


def test_tensor_read_inside_a_subgraph_is_renamed_there() -> None:
    b = Builder()
    hidden = b.gemm("x", "fc", 4, 3)
    copy = b.op("Identity", [hidden], "copy")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("then_out", "else_out")]
    then = helper.make_graph([helper.make_node("Relu", [copy], ["then_out"])], "then", [], ends[:1])
    other = helper.make_graph([helper.make_node("Neg", [copy], ["else_out"])], "else", [], ends[1:])
    y = b.op("If", [b.constant("condition", True, bool)], "if", then_branch=then, else_branch=other)
    edited, count = apply(remove_identity, b.model(y, (4,), (3,)))
    assert count == 1
    assert operators(edited) == ["Gemm", "If"]
