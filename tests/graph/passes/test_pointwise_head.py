"""Classifiers written as 1×1 convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from infoq_onnx.graph.passes.pointwise_head import pointwise_head
from tests.graph.compare import apply, assert_same_outputs, operators
from tests.networks import Builder, concat_net, depthwise_net

RESHAPES: dict[str, tuple[str, list[int] | None]] = {
    "flatten": ("Flatten", None),
    "reshape": ("Reshape", [-1, 5]),
    "reshape by zero": ("Reshape", [0, -1]),
    "squeeze": ("Squeeze", [2, 3]),
    "squeeze from behind": ("Squeeze", [-1, -2]),
}


def head(op_type: str, target: list[int] | None, pooled: bool = True, **attributes: Any) -> Builder:
    b = Builder()
    y = b.conv("x", "stem", 3, 4, stride=2)
    y = b.op("GlobalAveragePool", [y], "gap") if pooled else y
    per_group = 4 // attributes.get("group", 1)
    outputs = 5 if per_group == 4 else 8
    weight, bias = b.normal("head_w", outputs, per_group, 1, 1, fan_in=4), b.normal("head_b", outputs)
    y = b.op("Conv", [y, weight, bias], "head", **attributes)
    constants = [] if target is None else [b.constant("target", target, np.int64)]
    b.op(op_type, [y, *constants], "to_rows")
    return b


@pytest.mark.parametrize("form", RESHAPES)
def test_each_way_to_flatten(form: str) -> None:
    b = head(*RESHAPES[form])
    y = b.op("Softmax", ["to_rows_out"], "softmax", axis=1)
    edited, count = apply(pointwise_head, b.model(y, (3, 8, 8), (5,)))
    assert count == 1
    assert operators(edited) == ["Conv", "GlobalAveragePool", "Flatten", "Gemm", "Softmax"]
    assert [node.name for node in edited.graph.node][3] == "head"


def test_output_keeps_its_name() -> None:
    edited, count = apply(pointwise_head, depthwise_net())
    assert count == 1
    assert list(edited.graph.node[-1].output) == ["logits"]
    assert operators(edited)[-2:] == ["Flatten", "Gemm"]


def test_convolution_on_a_map_stays() -> None:
    _, count = apply(pointwise_head, concat_net())
    assert count == 0
    b = head("Flatten", None, pooled=False)
    _, count = apply(pointwise_head, b.model("to_rows_out", (3, 8, 8), (80,)))
    assert count == 0


@pytest.mark.parametrize("attributes", [{"group": 2}, {"pads": [1, 1, 1, 1]}])
def test_grouped_and_padded_convolutions_stay(attributes: dict[str, Any]) -> None:
    b = head("Flatten", None, **attributes)
    _, count = apply(pointwise_head, b.model("to_rows_out", (3, 8, 8), (8 if "group" in attributes else 45,)))
    assert count == 0


def test_convolution_whose_map_is_an_output_stays() -> None:
    model = depthwise_net()
    model.graph.output.append(helper.make_tensor_value_info("head_out", TensorProto.FLOAT, ["batch", 10, 1, 1]))
    _, count = apply(pointwise_head, model)
    assert count == 0


@pytest.mark.parametrize("spatial", [(1, 1), (1,)])
def test_a_head_that_ends_the_model_keeps_its_shape(spatial: tuple[int, ...]) -> None:
    """As FCN-like exports have it: the logits are [N, classes, 1, 1]."""
    b = Builder()
    side = tuple(6 for _ in spatial)
    hidden = b.op("GlobalAveragePool", [b.op("Relu", ["x"], "relu")], "pool")
    weight = b.normal("head_w", 5, 3, *spatial)
    before = b.model(b.op("Conv", [hidden, weight, b.normal("head_b", 5)], "head"), (3, *side), (5, *spatial))
    after = onnx.ModelProto()
    after.CopyFrom(before)
    assert pointwise_head(after) == 1
    assert [node.op_type for node in after.graph.node] == ["Relu", "GlobalAveragePool", "Flatten", "Gemm", "Reshape"]
    onnx.checker.check_model(after, full_check=True)
    assert_same_outputs(before, after)
