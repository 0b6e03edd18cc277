"""The read-only view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from infoq_onnx.errors import ModelError
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.load import load_model
from infoq_onnx.graph.normalize import normalize
from tests.graph.compare import random_input
from tests.networks import Builder, attention_net, mlp, residual_convnet


def test_who_writes_and_reads_what() -> None:
    graph = Graph(residual_convnet())
    assert (graph.input, graph.output, graph.outputs) == ("x", "logits", ("logits",))
    assert graph.producer["stem_out"].name == "stem"
    assert [node.name for node in graph.consumers["stem_relu_out"]] == ["a1", "a_add"]
    assert "logits" not in graph.consumers
    assert graph.constant("fc_w").shape == (10, 16)
    assert set(graph.initializers) == {tensor.name for tensor in graph.model.graph.initializer}
    with pytest.raises(KeyError):
        graph.constant("x")


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_shapes_are_those_of_one_image(batch: int | None) -> None:
    graph = Graph(residual_convnet(batch=batch))
    assert graph.batch == batch
    assert graph.shapes["x"] == (3, 16, 16)
    assert graph.shapes["b1_out"] == (16, 8, 8)
    assert graph.shapes["logits"] == (10,)
    assert graph.batched == set(graph.shapes)
    assert graph.dtypes["logits"] == np.float32
    assert graph.elements("b1_out") == 16 * 8 * 8


def test_tensors_without_a_leading_batch_axis_keep_their_shape() -> None:
    b = Builder()
    shape = b.op("Shape", ["x"], "shape")
    turned = b.op("Transpose", ["x"], "turn", perm=[1, 0])
    stacked = b.op("Reshape", ["x", b.constant("pairs", [-1, 2], np.int64)], "stack")
    back = b.op("Reshape", [stacked, shape], "unstack")
    y = b.op("Add", [b.op("Transpose", [turned], "return", perm=[1, 0]), back], "add")
    graph = Graph(b.model(y, (4,), (4,)))
    assert graph.batch is None
    assert graph.batched == {"x", "return_out", "unstack_out", "logits"}
    assert graph.shapes["shape_out"] == (2,)
    assert graph.shapes["turn_out"] == (4, 1)
    assert graph.shapes["stack_out"] == (2, 2)
    assert graph.elements("stack_out") == 4
    dims = graph.value_info("turn_out").type.tensor_type.shape.dim
    assert (dims[0].dim_value, dims[1].HasField("dim_value")) == (4, False)
    assert graph.value_info("logits").type.tensor_type.shape.dim[0].dim_param == "batch"


def test_elements_of_a_fixed_batch_are_counted_for_one_image() -> None:
    b = Builder()
    stacked = b.op("Reshape", ["x", b.constant("pairs", [-1, 2], np.int64)], "stack")
    y = b.op("Reshape", [stacked, b.constant("four", [-1, 4], np.int64)], "unstack")
    graph = Graph(b.model(y, (4,), (4,), batch=3))
    assert graph.shapes["stack_out"] == (6, 2)
    assert graph.elements("stack_out") == 4


def test_free_batch_before_a_graph_made_for_one_image() -> None:
    b = Builder()
    flat = b.op("Reshape", [b.conv("x", "conv", 3, 4), b.constant("one", [1, 64], np.int64)], "flat")
    model = b.model(b.gemm(flat, "fc", 64, 5), (3, 4, 4), (5,))
    graph = Graph(model)
    assert graph.batch == 1
    assert graph.shapes["logits"] == (5,)


def test_descendants() -> None:
    graph = Graph(residual_convnet())
    assert graph.descendants(["b2_out", "fc_b"]) == {
        *("b2_out", "fc_b", "b_add_out", "b_relu_out", "gap_out", "flatten_out", "logits")
    }


def test_ancestors() -> None:
    graph = Graph(residual_convnet())
    assert graph.ancestors("a1_relu_out") == {
        *("x", "stem_w", "stem_b", "stem_out", "stem_relu_out", "a1_w", "a1_b", "a1_out", "a1_relu_out")
    }
    assert graph.ancestors("x") == {"x"}


def test_shapes_agree_with_a_run() -> None:
    model = attention_net()
    graph = Graph(model)
    names = list(graph.shapes)
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in ("x", "logits"))
    session = ReferenceEvaluator(exposed)
    feeds = random_input(model, batch=3)
    outputs = [name for name in names if name != "x"]
    for name, value in zip(outputs, session.run(outputs, feeds), strict=True):
        assert name in graph.batched
        assert value.shape == (3, *graph.shapes[name])
        assert value.dtype == graph.dtypes[name]


@pytest.mark.parametrize(
    ("dims", "words"),
    [
        (["batch", 3, "height", "width"], r"\(height, width\)"),
        (["batch", None, 8, 8], r"\(axis 1\)"),
        ([5], "1 dimension, not a batch"),
    ],
)
def test_free_or_missing_dimensions(dims: list[int | str | None], words: str) -> None:
    model = mlp()
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, dims))
    with pytest.raises(ModelError, match=words) as caught:
        Graph(model)
    assert "\n" not in str(caught.value)


def test_graph_that_fails_at_run_time() -> None:
    b = Builder()
    index = b.op("Cast", [b.op("ArgMax", ["x"], "first", axis=1)], "cast", to=onnx.TensorProto.INT64)
    beyond = b.op("Add", [index, b.constant("far", 100, np.int64)], "beyond")
    y = b.op("Gather", [b.normal("table", 4, 6), beyond], "gather")
    model = b.model(b.op("Squeeze", [y, b.constant("axis", [1], np.int64)], "squeeze"), (4,), (6,))
    with pytest.raises(ModelError, match=r"onnxruntime cannot run the model: .*Gather"):
        _ = Graph(model).shapes


def test_attention_of_a_real_model_keeps_the_batch(shared: Path) -> None:
    graph = Graph(normalize(load_model(shared / "models" / "vit_tiny.onnx")))
    assert graph.batch is None
    assert graph.shapes["permute"] == (3, 1, 3, 197, 64)
    assert graph.shapes["softmax"] == (3, 197, 197)
    assert "softmax" in graph.batched


@pytest.mark.parametrize("size", [2**31, 2**40, 2**62])
@pytest.mark.parametrize("axis", [0, 1])
def test_absurd_sizes_of_the_input(axis: int, size: int) -> None:
    b = Builder()
    model = b.model(b.gemm("x", "fc", 4, 3), (4,), (3,))
    model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    with pytest.raises(ModelError, match=rf"{size}.* elements, more than 1,073,741,824"):
        Graph(model)


@pytest.mark.parametrize("images", [1, 2])
def test_a_loop_without_end(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Endless for any batch, or only for one of two images, which is looked at second."""
    monkeypatch.setattr("infoq_onnx.graph.graph._LOOP_SECONDS", 0.2)
    state = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("state", "state_out")]
    go = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "go_out")]
    turn = helper.make_tensor_value_info("turn", TensorProto.INT64, [])
    nodes = [helper.make_node("Identity", ["go"], ["go_out"]), helper.make_node("Neg", ["state"], ["state_out"])]
    body = helper.make_graph(nodes, "body", [turn, go[0], state[0]], [go[1], state[1]])
    b = Builder()
    turns = b.constant("turns", 2**62, np.int64)
    if images == 2:
        batch = b.op("Squeeze", [b.op("Shape", ["x"], "shape", start=0, end=1)], "batch")
        turns = b.op("Mul", [b.op("Sub", [batch, b.constant("one", 1, np.int64)], "others"), turns], "product")
    y = b.op("Loop", [turns, "", "x"], "loop", body=body)
    with pytest.raises(
        ModelError, match=rf"{images} images? takes? .*more than 0\.2 seconds; .* without endless loops"
    ):
        _ = Graph(b.model(y, (4,), (4,))).shapes
