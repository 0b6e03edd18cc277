"""Names of nodes."""

from __future__ import annotations

from infoq_onnx.graph.passes.name_nodes import name_nodes
from tests.graph.compare import apply
from tests.networks import mlp


def test_nameless_and_repeated_names() -> None:
    model = mlp()
    for node, name in zip(model.graph.node, ["", "a", "a", "a_2", ""], strict=True):
        node.name = name
    assert name_nodes(model) == 3
    assert [node.name for node in model.graph.node] == ["Gemm_fc1_out", "a", "a_3", "a_2", "Gemm_logits"]


def test_own_names_stay() -> None:
    assert name_nodes(mlp()) == 0


def test_nameless_network() -> None:
    model = mlp()
    for node in model.graph.node:
        node.ClearField("name")
    _, count = apply(name_nodes, model)
    assert count == 5
