"""What no output depends on."""

from __future__ import annotations

import numpy as np
from onnx import helper

from infoq_onnx.graph.passes.remove_dead import remove_dead
from tests.graph.compare import apply, operators
from tests.networks import Builder, mlp


def test_nodes_initializers_and_shape_notes_go() -> None:
    b = Builder()
    y = b.gemm("x", "fc", 4, 3)
    b.op(
        "Neg",
        [
            b.op("Exp", [y], "exp"),
        ],
        "neg",
    )
    b.constant("unused", np.ones(3))
    b.op("Mul", ["x", b.constant("dead", 2.0)], "mul")
    model = b.model(y, (4,), (3,))
    model.graph.value_info.append(helper.make_tensor_value_info("exp_out", 1, ["batch", 3]))
    edited, count = apply(remove_dead, model)
    assert count == 5
    assert operators(edited) == ["Gemm"]
    assert not edited.graph.value_info
    assert [tensor.name for tensor in edited.graph.initializer] == ["fc_w", "fc_b"]


def test_optional_outputs_go_and_variadic_ones_stay() -> None:
    b = Builder()
    b.nodes.append(helper.make_node("MaxPool", ["x"], ["pooled", "indices"], kernel_shape=[2, 2], strides=[2, 2]))
    b.nodes.append(helper.make_node("Split", ["pooled", b.constant("sizes", [1, 3], np.int64)], ["a", "b"], axis=1))
    edited, count = apply(remove_dead, b.model(b.relu("a", "relu"), (4, 4, 4), (1, 2, 2)))
    assert count == 1
    assert [list(node.output) for node in edited.graph.node][:2] == [["pooled"], ["a", "b"]]


def test_live_network_stays() -> None:
    assert remove_dead(mlp()) == 0
