"""Which output is taken for the class scores, and what is said where none is."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from infoq_onnx.errors import ModelError
from infoq_onnx.evaluation import open_classifier
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.logits import with_logits
from infoq_onnx.preparation import prepare
from tests.networks import Builder
from tests.pipeline.cases import Listener


def classifier(*outputs: tuple[str, int, list[object]]) -> onnx.ModelProto:
    """A classifier with a label, an inner map and scores, of which some are outputs, in any order."""
    b = Builder()
    scores = b.gemm(b.relu(b.gemm("x", "fc1", 4, 6), "relu"), "fc2", 6, 3)
    b.op("ArgMax", [scores], "label", axis=1, keepdims=0)
    b.op("ReduceMean", ["fc1_out"], "mean", axes=[1])
    model = b.model(scores, (4,), (3,))
    for node in model.graph.node:
        if node.output[0] == "logits":
            node.output[0] = "fc2_out"
        for index, name in enumerate(node.input):
            if name == "logits":
                node.input[index] = "fc2_out"
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(*output) for output in outputs)
    return model


LABEL = ("label_out", TensorProto.INT64, ["batch"])
MEAN = ("mean_out", TensorProto.FLOAT, ["batch", 1])
HIDDEN = ("relu_out", TensorProto.FLOAT, ["batch", 6])
SCORES = ("fc2_out", TensorProto.FLOAT, ["batch", 3])


@pytest.mark.parametrize(
    ("outputs", "wanted", "expected"),
    [
        ([SCORES], None, "fc2_out"),
        ([SCORES, HIDDEN], None, "fc2_out"),
        ([HIDDEN, SCORES], None, "relu_out"),
        ([LABEL, SCORES], None, "fc2_out"),
        ([MEAN, LABEL, SCORES], None, "fc2_out"),
        ([HIDDEN, SCORES], "fc2_out", "fc2_out"),
        ([LABEL, HIDDEN, SCORES], "fc2_out", "fc2_out"),
    ],
)
def test_the_output_with_the_scores(
    outputs: list[tuple[str, int, list[object]]], wanted: str | None, expected: str, tmp_path: Path
) -> None:
    model = classifier(*outputs)
    graph = with_logits(Graph(model), wanted)
    assert graph.output == expected
    # the order of the outputs, which programs rely on, stays; and the choice travels with the model
    assert graph.outputs == tuple(name for name, *_ in outputs)
    assert pickle.loads(pickle.dumps(graph)).output == expected
    onnx.save(model, tmp_path / "model.onnx")
    listener = Listener()
    assert prepare(tmp_path / "model.onnx", wanted, listener).network.output == expected
    assert bool(listener.notes) == (wanted is None and expected != outputs[0][0])
    onnx.save(graph.model, tmp_path / "chosen.onnx")
    assert open_classifier(tmp_path / "chosen.onnx").output == expected


@pytest.mark.parametrize(
    ("outputs", "wanted", "told"),
    [
        ([LABEL], None, r"'label_out' is int64 \[batch\], a chosen class .* without ArgMax"),
        ([MEAN], None, r"'mean_out' is float32 \[batch, 1\], one score an image.*torch.cat"),
        ([LABEL, HIDDEN, SCORES], None, r"several others .* \(relu_out, fc2_out\): choose one with `logits`"),
        ([LABEL, SCORES], "label_out", "a chosen class"),
        ([SCORES], "prob", "no output 'prob'; its outputs are fc2_out: give one of them with `logits`"),
    ],
)
def test_what_is_said_where_there_are_none(
    outputs: list[tuple[str, int, list[object]]], wanted: str | None, told: str
) -> None:
    with pytest.raises(ModelError, match=told):
        with_logits(Graph(classifier(*outputs)), wanted)


def test_a_sequence_of_maps() -> None:
    """As skl2onnx writes with ZipMap."""
    b = Builder()
    model = b.model(b.gemm("x", "fc", 4, 3), (4,), (3,))
    model.graph.node.append(helper.make_node("SequenceConstruct", ["logits"], ["maps"]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_sequence_value_info("maps", TensorProto.FLOAT, None))
    with pytest.raises(ModelError, match=r"'maps' is not a tensor.*zipmap=False"):
        with_logits(Graph(model))


def test_accuracy_is_that_of_the_scores(tmp_path: Path) -> None:
    """A label in front of the scores is what evaluate took before."""
    onnx.save(classifier(LABEL, SCORES), tmp_path / "model.onnx")
    opened = open_classifier(tmp_path / "model.onnx")
    assert (opened.output, opened.classes) == ("fc2_out", 3)
    assert opened.run(np.zeros((2, 4), np.float32)).shape == (2, 3)
