"""Helpers that look into subgraphs, and copies with other constants."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from infoq_onnx.graph.editing import (
    add_metadata,
    consumers_of,
    reads,
    rename_uses,
    set_initializers,
    uses_of,
    with_initializers,
)
from tests.networks import Builder, mlp
from tests.prepared import small


def with_loop() -> onnx.ModelProto:
    """Return a net whose Loop body reads `scale`, `fc_out` and, in a nested If, `deep` from outside."""
    b = Builder()
    hidden = b.gemm("x", "fc", 4, 4)
    end = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    deep = helper.make_graph([helper.make_node("Add", ["state", "deep"], ["inner"])], "deep", [], [end])
    nodes = [
        helper.make_node("Identity", ["go"], ["go_out"]),
        helper.make_node("If", ["go"], ["changed"], then_branch=deep, else_branch=deep),
        helper.make_node("Mul", ["changed", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", hidden], ["state_out"]),
    ]
    body = helper.make_graph(
        nodes,
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, None),
        ],
    )
    b.constant("scale", 0.5)
    b.constant("deep", 1.0)
    y = b.op("Loop", [b.constant("trips", 2, np.int64), "", "x"], "loop", body=body)
    return b.model(y, (4,), (4,))


def test_reads_what_subgraphs_take_from_outside() -> None:
    model = with_loop()
    loop = model.graph.node[1]
    assert set(reads(loop)) == {"trips", "x", "scale", "deep", "fc_out"}
    assert [node.name for node in consumers_of(model.graph)["fc_out"]] == ["loop"]
    assert uses_of(model.graph)["deep"] == 1


def test_rename_reaches_nested_subgraphs() -> None:
    model = with_loop()
    rename_uses(model.graph, "deep", "deeper")
    assert "deeper" in reads(model.graph.node[1])
    assert "deep" not in reads(model.graph.node[1])


def test_metadata_is_added_to_what_there_is() -> None:
    model = mlp()
    add_metadata(model, {"author": "somebody", "budget": "old"})
    add_metadata(model, {"budget": "new"})
    assert {entry.key: entry.value for entry in model.metadata_props} == {"author": "somebody", "budget": "new"}


def test_set_initializers_changes_the_named_ones_alone() -> None:
    of = small("mlp")
    model = onnx.ModelProto()
    model.CopyFrom(of.graph.model)
    set_initializers(model, {"fc1_w": np.zeros((16, 12), np.float32), "nowhere": np.zeros(1, np.float32)})
    before = {tensor.name: tensor.SerializeToString() for tensor in of.graph.model.graph.initializer}
    after = {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer}
    assert before.keys() == after.keys()
    assert {name for name, content in after.items() if content != before[name]} == {"fc1_w"}


def test_copies_with_other_initializers_differ_in_these_alone() -> None:
    of = small("mlp")
    of_before = of.graph.model.SerializeToString()
    plain = with_initializers(of.graph.model, {})
    assert plain.SerializeToString(deterministic=True) == of.graph.model.SerializeToString(deterministic=True)
    values = {"fc1_w": np.full((16, 12), 2, np.float32), "nowhere": np.zeros(1, np.float32)}
    copy, in_place = with_initializers(of.graph.model, values), onnx.ModelProto()
    in_place.CopyFrom(of.graph.model)
    set_initializers(in_place, values)
    assert copy.SerializeToString(deterministic=True) == in_place.SerializeToString(deterministic=True)
    assert of.graph.model.SerializeToString() == of_before
