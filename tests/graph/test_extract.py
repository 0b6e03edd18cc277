"""Pieces of graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from infoq_onnx.graph.extract import cut, expose, extract
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.load import load_model
from infoq_onnx.graph.normalize import normalize
from infoq_onnx.graph.ort import run
from tests.graph.compare import random_input
from tests.networks import SMALL, Builder, residual_convnet


def values_of(model: onnx.ModelProto, tensors: list[str], batch: int = 2) -> dict[str, np.ndarray]:
    feeds = random_input(model, batch)
    return feeds | dict(zip(tensors, run(expose(model, tensors), feeds, tensors), strict=True))


@pytest.mark.parametrize("name", SMALL)
def test_cut_then_extract_recomputes_the_rest_of_the_graph(name: str) -> None:
    """From every tensor: what `cut` keeps is enough, and gives the outputs of the whole."""
    graph = Graph(normalize(SMALL[name]()))
    everything = [tensor for tensor in graph.shapes if tensor != graph.input]
    values = values_of(graph.model, everything, graph.batch or 3)
    for start in graph.shapes:
        if start == graph.output:
            continue
        kept = cut(graph, [start])
        part = extract(graph, kept, [graph.output])
        onnx.checker.check_model(part, full_check=True)
        assert start in kept
        assert [value.name for value in part.graph.input] == list(kept)
        (found,) = run(part, {tensor: values[tensor] for tensor in kept})
        np.testing.assert_array_equal(found, values[graph.output])


def test_cut_is_what_crosses() -> None:
    graph = Graph(residual_convnet())
    assert cut(graph, ["stem_relu_out"]) == ("stem_relu_out",)
    assert cut(graph, ["a1_relu_out"]) == ("stem_relu_out", "a1_relu_out")
    assert cut(graph, ["b2_out"]) == ("b2_out", "b_short_out")
    assert cut(graph, ["logits"]) == ()
    # a start tensor behind another one is held fixed, not recomputed
    assert cut(graph, ["b1_out", "b_relu_out"]) == ("b1_out", "b_short_out", "b_relu_out")


def test_only_what_is_needed_is_copied() -> None:
    graph = Graph(residual_convnet())
    part = extract(graph, ["b_relu_out"], ["logits", "gap_out"])
    assert [node.op_type for node in part.graph.node] == ["GlobalAveragePool", "Flatten", "Gemm"]
    assert [tensor.name for tensor in part.graph.initializer] == ["fc_w", "fc_b"]
    assert [value.name for value in part.graph.output] == ["logits", "gap_out"]
    dims = part.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 16, 8, 8]


def test_input_passed_through_and_input_not_used() -> None:
    graph = Graph(residual_convnet())
    values = values_of(graph.model, ["b_relu_out", "stem_out", "logits"])
    part = extract(graph, ["b_relu_out", "stem_out"], ["b_relu_out", "logits"])
    passed, logits = run(part, {name: values[name] for name in ("b_relu_out", "stem_out")})
    np.testing.assert_array_equal(passed, values["b_relu_out"])
    np.testing.assert_array_equal(logits, values["logits"])


def test_initializer_as_input() -> None:
    graph = Graph(residual_convnet())
    values = values_of(graph.model, ["flatten_out", "logits"])
    part = extract(graph, ["flatten_out", "fc_w"], ["logits"])
    (found,) = run(part, {"flatten_out": values["flatten_out"], "fc_w": graph.constant("fc_w")})
    np.testing.assert_array_equal(found, values["logits"])
    assert [tensor.name for tensor in part.graph.initializer] == ["fc_b"]


def test_fixed_batch_stays_fixed() -> None:
    graph = Graph(residual_convnet(batch=1))
    dims = extract(graph, ["gap_out"], ["logits"]).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [1, 16, 1, 1]


def test_shape_arithmetic_crosses_a_cut() -> None:
    b = Builder()
    shape = b.op("Shape", ["x"], "shape", end=1)
    target = b.op("Concat", [shape, b.constant("rest", [4], np.int64)], "target", axis=0)
    token = b.op("Expand", [b.normal("token", 1, 4), target], "expand")
    y = b.op("Add", [b.relu("x", "relu"), token], "add")
    graph = Graph(b.model(y, (4,), (4,)))
    assert cut(graph, ["target_out"]) == ("target_out", "relu_out")
    values = values_of(graph.model, ["target_out", "relu_out", "logits"], batch=3)
    part = extract(graph, ["target_out", "relu_out"], ["logits"])
    assert part.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT64
    (found,) = run(part, {name: values[name] for name in ("target_out", "relu_out")})
    np.testing.assert_array_equal(found, values["logits"])


def test_wrong_names() -> None:
    graph = Graph(residual_convnet())
    with pytest.raises(ValueError, match="'nowhere' is not a tensor"):
        extract(graph, ["x"], ["nowhere"])
    with pytest.raises(ValueError, match="depend on 'x'"):
        extract(graph, ["b2_out"], ["logits"])


def test_expose_adds_outputs_once() -> None:
    model = residual_convnet()
    exposed = expose(model, ["stem_out", "logits", "stem_out", "x"])
    assert [value.name for value in exposed.graph.output] == ["logits", "stem_out", "x"]
    assert len(model.graph.output) == 1
    feeds = random_input(model)
    np.testing.assert_array_equal(run(exposed, feeds)[2], feeds["x"])


def test_attention_of_a_real_model(shared: Path) -> None:
    graph = Graph(normalize(load_model(shared / "models" / "vit_tiny.onnx")))
    start = "permute_11"  # [3, batch, heads, tokens, channels]: the batch is not in front
    kept = cut(graph, [start])
    values = values_of(graph.model, [*kept, "logits"], batch=2)
    (found,) = run(extract(graph, kept, ["logits"]), {name: values[name] for name in kept})
    np.testing.assert_allclose(found, values["logits"], atol=1e-4)
