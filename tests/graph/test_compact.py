"""Files without what only exporters want: the same function, in fewer bytes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from infoq_onnx.graph.compact import shorten_names, strip_documentation
from infoq_onnx.graph.ort import run
from tests.graph.compare import assert_same_outputs
from tests.graph.test_editing import with_loop
from tests.networks import SMALL


def annotated(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with remarks of an exporter wherever they may stand."""
    for item in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        item.doc_string = "/home/somebody/model.py line 12"
        item.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File /home/somebody/model.py")
    for node in model.graph.node:
        for attribute in node.attribute:
            attribute.doc_string = "somebody"
            if attribute.HasField("g"):
                attribute.g.node[0].doc_string = "/home/somebody"
    model.metadata_props.add(key="author", value="us")
    return model


@pytest.mark.parametrize("model", [*(make() for make in SMALL.values()), with_loop()], ids=[*SMALL, "loop"])
def test_nothing_of_it_stays(model: onnx.ModelProto) -> None:
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    strip_documentation(annotated(model))
    assert b"somebody" not in model.SerializeToString()
    assert [(entry.key, entry.value) for entry in model.metadata_props][-1] == ("author", "us")
    del model.metadata_props[len(plain.metadata_props) :]
    plain.ClearField("doc_string")
    assert model.ByteSize() <= plain.ByteSize()
    assert_same_outputs(plain, model)


@pytest.mark.parametrize("model", [*(make() for make in SMALL.values()), with_loop()], ids=[*SMALL, "loop"])
def test_short_names_compute_the_same(model: onnx.ModelProto) -> None:
    short = onnx.ModelProto()
    short.CopyFrom(model)
    kept = model.graph.node[0].output[0]
    shorten_names(short, {kept})
    onnx.checker.check_model(short, full_check=True)
    assert short.ByteSize() <= model.ByteSize()
    assert any(kept in node.output for node in short.graph.node)
    assert [value.name for value in short.graph.output] == [value.name for value in model.graph.output]
    assert_same_outputs(model, short)


def test_a_short_name_that_is_taken_is_passed_over() -> None:
    model = SMALL["mlp"]()
    model.graph.input[0].name = "a"
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "x":
                node.input[index] = "a"
    shorten_names(model, {"b"})
    names = {name for node in model.graph.node for name in node.output} | {t.name for t in model.graph.initializer}
    assert not names & {"a", "b"}
    assert run(model, {"a": np.zeros((1, 12), np.float32)})[0].shape[0] == 1
