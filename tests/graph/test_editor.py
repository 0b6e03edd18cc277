"""An editor shows what a graph is like after every change, and leaves what one pass over the graph would find."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from infoq_onnx.graph.editing import consumers_of, initializers_of, producers_of, reads, to_array, uses_of
from infoq_onnx.graph.editor import Editor
from infoq_onnx.graph.ort import run
from tests.graph.test_editing import with_loop
from tests.networks import SMALL, mlp, residual_convnet


@pytest.mark.parametrize("name", SMALL)
def test_it_sees_what_helpers_see(name: str) -> None:
    graph = SMALL[name]().graph
    editor = Editor(graph)
    assert editor.producer == producers_of(graph)
    assert editor.constants.keys() == initializers_of(graph).keys()
    uses = uses_of(graph)
    for tensor, nodes in consumers_of(graph).items():
        assert editor.readers(tensor) == nodes
        assert editor.uses(tensor) == uses[tensor]
    assert editor.readers("nowhere") == []
    assert editor.uses("nowhere") == 0


def test_a_constant_that_others_read_is_left_to_them() -> None:
    model = mlp()
    first, second = model.graph.node[0], model.graph.node[2]
    second.input[2] = "fc1_b"
    editor = Editor(model.graph)
    editor.set_constant(first, 2, np.zeros(16, np.float32))
    constants = initializers_of(model.graph)
    assert to_array(constants["fc1_b"]).any()
    assert not to_array(constants[first.input[2]]).any()
    editor.set_constant(second, 2, np.ones(16, np.float32))
    np.testing.assert_array_equal(to_array(initializers_of(model.graph)["fc1_b"]), np.ones(16))


def test_a_constant_in_an_empty_place() -> None:
    model = mlp()
    node = model.graph.node[0]
    del node.input[2]
    editor = Editor(model.graph)
    editor.set_constant(node, 2, np.ones(16, np.float32), "bias")
    assert list(node.input) == ["x", "fc1_w", "bias"]
    assert editor.readers("bias") == [node]


def test_names_are_taken_once() -> None:
    editor = Editor(with_loop().graph)
    assert [editor.fresh_name(base) for base in ("new", "new", "x", "scaled")] == ["new", "new_2", "x_2", "scaled_2"]
    assert editor.add_constant("deep", np.ones(1, np.float32)) == "deep_2"
    assert editor.add_constant("deep", np.ones(1, np.float32)) == "deep_3"


def test_initializers_are_stored_raw() -> None:
    model = mlp()
    name = Editor(model.graph).add_constant("codes", np.full(1000, 127, np.int8))
    assert initializers_of(model.graph)[name].ByteSize() < 1050


def test_readers_in_subgraphs_follow() -> None:
    model = with_loop()
    editor = Editor(model.graph)
    loop = model.graph.node[1]
    editor.read_instead("deep", "deeper")
    assert editor.readers("deep") == []
    assert editor.readers("deeper") == [loop]
    assert "deeper" in reads(loop)
    assert "deep" not in reads(loop)


def test_nodes_are_replaced_in_their_place() -> None:
    model = residual_convnet()
    x = {model.graph.input[0].name: np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)}
    before = run(model, x)[0]
    editor = Editor(model.graph)
    relus = [node for node in editor.nodes if node.op_type == "Relu"]
    zero = editor.add_constant("zero", np.zeros((), np.float32))
    for relu in relus:
        new = helper.make_node("Max", [relu.input[0], zero], list(relu.output), relu.name)
        editor.replace(relu, [relu], [new])
        assert editor.producer[relu.output[0]] is new
        assert relu not in editor.readers(relu.input[0])
        assert editor.sole_reader(relu.output[0]) in (None, *editor.readers(relu.output[0]))
    assert any(node.op_type == "Relu" for node in model.graph.node)
    editor.apply()
    assert not any(node.op_type == "Relu" for node in model.graph.node)
    assert sum(node.op_type == "Max" for node in model.graph.node) == len(relus)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(model, x)[0], before)


def test_nodes_that_were_added_can_go_again() -> None:
    model = mlp()
    editor = Editor(model.graph)
    one, other = (helper.make_node("Abs", ["x"], [name], name) for name in ("one", "other"))
    editor.replace(editor.nodes[0], [], [one, other])
    editor.remove([one])
    editor.apply()
    assert [node.name for node in model.graph.node][:2] == ["other", "fc1"]


def test_without_changes_nothing_is_written() -> None:
    model = mlp()
    first = model.graph.node[0]
    Editor(model.graph).apply()
    assert model.graph.node[0] is first
