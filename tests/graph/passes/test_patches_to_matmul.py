"""Convolutions that cut an image into tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.network import find_network
from infoq_onnx.graph.normalize import normalize
from infoq_onnx.graph.passes.patches_to_matmul import patches_to_matmul
from tests.graph.compare import apply, assert_same_outputs, operators
from tests.networks import Builder

FORMS = ["reshape", "reshape by minus one", "flatten", "channels last"]


def patches(
    form: str = "reshape",
    size: tuple[int, int] = (12, 8),
    kernel: tuple[int, int] = (4, 2),
    bias: bool = True,
    last: list[int] | None = None,
    **attributes: Any,
) -> ModelProto:
    """An image of 3 channels, cut into tokens of 5 values; the classes are those of the mean token."""
    b = Builder()
    group = attributes.get("group", 1)
    inputs = ["x", b.normal("embed_w", 6, 3 // group, *kernel, fan_in=3 * kernel[0] * kernel[1])]
    if bias:
        inputs.append(b.normal("embed_b", 6))
    y = b.op("Conv", inputs, "embed", **{"strides": list(kernel), **attributes})
    if form == "channels last":
        y = b.op("Transpose", [y], "last", perm=last or [0, 2, 3, 1])
        y = b.op("Reshape", [y, b.constant("positions", [0, -1, 6], np.int64)], "tokens")
    else:
        if form == "flatten":
            y = b.op("Reshape", [y, b.constant("flat", [0, 6, -1], np.int64)], "flat")
        elif form == "reshape":
            count = (size[0] // kernel[0]) * (size[1] // kernel[1])
            y = b.op("Reshape", [y, b.constant("flat", [-1, 6, count], np.int64)], "flat")
        else:
            y = b.op("Reshape", [y, b.constant("flat", [0, 0, -1], np.int64)], "flat")
        y = b.op("Transpose", [y], "last", perm=last or [0, 2, 1])
    y = b.op("Mul", [y, b.normal("gain", 6)], "gain")
    y = b.op("ReduceMean", [y], "pool", axes=[1], keepdims=0)
    return b.model(y, (3, *size), (6,))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_each_way_to_write_tokens(form: str, bias: bool) -> None:
    edited, count = apply(patches_to_matmul, patches(form, bias=bias))
    assert count == 1
    start = ["Reshape", "Transpose", "Reshape", "MatMul", *(["Add"] if bias else [])]
    rest = ["Reshape"] if form == "channels last" else []
    assert operators(edited) == [*start, *rest, "Mul", "ReduceMean"]
    assert edited.graph.node[3].name == "embed"
    assert edited.graph.node[len(start) - 1].output[0] == "last_out"


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2, 2]},
        {"strides": [4, 1]},
        {"pads": [2, 0, 2, 0]},
        {"auto_pad": "SAME_UPPER"},
        {"dilations": [2, 2], "size": (14, 10), "strides": [4, 2]},
        {"group": 3},
        {"size": (14, 8)},
        {"form": "channels last", "last": [0, 3, 2, 1]},
    ],
    ids=str,
)
def test_others_stay(attributes: dict[str, Any]) -> None:
    """Windows that overlap, leave a margin or see padding; orders that are not channels last."""
    _, count = apply(patches_to_matmul, patches(**{"form": "reshape by minus one", **attributes}))
    assert count == 0


def test_a_map_that_others_read_stays() -> None:
    model = patches()
    model.graph.output.append(helper.make_tensor_value_info("embed_out", TensorProto.FLOAT, ["batch", 6, 3, 4]))
    _, count = apply(patches_to_matmul, model)
    assert count == 0
    model = patches()
    model.graph.node.append(helper.make_node("Relu", ["embed_out"], ["also"], name="also"))
    model.graph.output.append(helper.make_tensor_value_info("also", TensorProto.FLOAT, ["batch", 6, 3, 4]))
    _, count = apply(patches_to_matmul, model)
    assert count == 0


def test_the_layer_is_one_with_a_bias_and_as_many_products() -> None:
    model = patches()
    normal = normalize(model)
    assert_same_outputs(model, normal)
    layer = find_network(Graph(normal)).layers[0]
    assert (layer.name, layer.op_type, layer.weight_shape) == ("embed", "MatMul", (24, 6))
    assert layer.bias is not None
    assert layer.macs == 12 * 24 * 6
