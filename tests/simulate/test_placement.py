"""Where quantizers stand: rules a, b and c of `infoq_onnx.simulate.quantizers.placement`, one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.operators import clip_bounds
from infoq_onnx.simulate.quantizers.placement import Placement
from tests.networks import (
    SMALL,
    Builder,
    attention_net,
    auxiliary_net,
    concat_net,
    depthwise_net,
    mlp,
    residual_convnet,
)
from tests.prepared import searched

IMAGE = (3, 8, 8)


def placement_of(model: onnx.ModelProto) -> Placement:
    return searched(model)[2]


def with_outputs(model: onnx.ModelProto, **shapes: list[int]) -> onnx.ModelProto:
    """Make further tensors outputs of the model."""
    for name, shape in shapes.items():
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]))
    return model


def classified(b: Builder, tensor: str, channels: int) -> onnx.ModelProto:
    return b.model(b.classifier(tensor, channels, 10), IMAGE, (10,))


# --------------------------------------------------------------------------------------------------------------- rule a


def test_a_the_input_of_every_layer_is_stored_and_outputs_of_gemm_are_not() -> None:
    found = placement_of(mlp())
    assert found.storage == ("x", "relu1_out", "relu2_out")
    assert found.direct == {"x", "relu1_out", "relu2_out"}
    assert found.inherited == {}


def test_a_behind_a_float_operator() -> None:
    b = Builder()
    act = b.op("HardSwish", [b.conv("x", "first", 3, 8)], "act")
    found = placement_of(classified(b, b.conv(act, "second", 8, 8), 8))
    assert found.storage == ("x", "first_out", "act_out", "second_out", "gap_out")
    assert found.fused == {}


@pytest.mark.parametrize("part", [0, 1])
def test_a_every_output_of_a_node_may_feed_a_layer(part: int) -> None:
    b = Builder()
    act = b.op("HardSwish", [b.conv("x", "first", 3, 8)], "act")
    b.op("Split", [act], "split", outputs=["left", "right"], axis=1)
    parts = ["left", "right"]
    parts[part] = b.conv(parts[part], "second", 4, 4)
    found = placement_of(classified(b, b.op("Concat", parts, "join", axis=1), 8))
    assert ("left", "right")[part] in found.storage
    assert ("left", "right")[1 - part] not in found.storage


def test_a_tensors_that_mix_the_images_of_a_batch() -> None:
    """[tokens, batch, features], as attention is often exported, is quantized like any other tensor."""
    b = Builder()
    patches = b.op("Conv", ["x", b.normal("w", 8, 3, 2, 2, fan_in=12)], "patch", strides=[2, 2])
    rows = b.op("Reshape", [patches, b.constant("rows", [0, 8, 16], np.int64)], "rows_of")
    hidden = b.op("Tanh", [b.linear(b.op("Transpose", [rows], "tokens", perm=[2, 0, 1]), "one", 8, 8)], "act")
    mean = b.op("ReduceMean", [b.linear(hidden, "two", 8, 8)], "mean", axes=[0], keepdims=0)
    graph, _, found = searched(b.model(b.gemm(mean, "fc", 8, 10), IMAGE, (10,)))
    assert {"act_out", "tokens_out"}.isdisjoint(graph.batched)
    assert found.inherited["tokens_out"] == "patch_out"
    assert "act_out" in found.storage


@pytest.mark.parametrize("tensor", ["flatten_out", "relu1_out"])
def test_a_a_graph_output_that_feeds_a_layer(tensor: str) -> None:
    b = Builder()
    y = b.relu(b.conv("x", "one", 3, 8), "relu1")
    model = classified(b, b.relu(b.conv(y, "two", 8, 8), "relu2"), 8)
    found = placement_of(with_outputs(model, **{tensor: {"flatten_out": [8], "relu1_out": [8, 8, 8]}[tensor]}))
    assert tensor in {*found.storage, *found.inherited}
    # its node must stay, for it writes the output
    assert tensor not in found.fused


@pytest.mark.parametrize("name", SMALL)
def test_a_every_group_has_a_quantizer(name: str) -> None:
    _, network, found = searched(SMALL[name]())
    assert {group.name for group in network.groups} <= {*found.storage, *found.inherited}
    assert set(found.inherited.values()) <= set(found.storage)
    assert set(found.storage).isdisjoint(found.inherited)


# --------------------------------------------------------------------------------------------------------------- rule b


def test_b_the_quantizer_behind_a_convolution_stands_after_its_relu() -> None:
    found = placement_of(residual_convnet())
    assert found.fused == {
        "stem_relu_out": "stem_out",
        "a1_relu_out": "a1_out",
        "a_relu_out": "a_add_out",
        "b1_relu_out": "b1_out",
        "b_relu_out": "b_add_out",
    }
    assert {"a2_out", "b2_out", "b_short_out"} <= set(found.storage)
    assert {"stem_out", "a1_out", "b1_out"}.isdisjoint(found.storage)


def test_b_the_quantizer_behind_a_convolution_stands_after_clip_from_zero() -> None:
    found = placement_of(depthwise_net())
    assert found.fused == {f"{name}_relu6_out": f"{name}_out" for name in ("stem", "dw1", "dw2", "expand")}
    assert {"project1_out", "add_out"} <= set(found.storage)


def clipped(low: str, high: str) -> Callable[[Builder, str], str]:
    return lambda b, y: b.op("Clip", [y, low, high], "act")


@pytest.mark.parametrize(
    ("activation", "fused"),
    [
        (lambda b, y: b.relu(y, "act"), True),
        (clipped("zero", "six"), True),
        (clipped("", "six"), False),
        (clipped("minus", "six"), False),
        (clipped("zero", "nothing"), False),
        (lambda b, y: b.op("LeakyRelu", [y], "act"), False),
        (lambda b, y: b.op("Tanh", [y], "act"), False),
    ],
    ids=["relu", "relu6", "no lower bound", "negative bound", "empty", "leaky", "tanh"],
)
def test_b_what_is_fused(activation: Callable[[Builder, str], str], fused: bool) -> None:
    b = Builder()
    for name, value in (("zero", 0.0), ("six", 6.0), ("minus", -1.0), ("nothing", 0.0)):
        b.constant(name, value)
    y = activation(b, b.conv("x", "one", 3, 8))
    found = placement_of(classified(b, b.conv(y, "two", 8, 8), 8))
    assert found.fused == ({"act_out": "one_out"} if fused else {})
    assert ("one_out" in found.storage) is not fused
    assert "act_out" in found.storage


def test_b_a_bound_computed_at_run_time_is_not_fused() -> None:
    b = Builder()
    y = b.conv("x", "one", 3, 8)
    top = b.op("ReduceMax", [y], "top", keepdims=0)
    graph, _, found = searched(
        classified(b, b.conv(b.op("Clip", [y, b.constant("zero", 0.0), top], "act"), "two", 8, 8), 8)
    )
    assert np.isnan(clip_bounds(graph, graph.producer["act_out"])[1])
    assert found.fused == {}


def test_b_a_second_reader_of_the_convolution_keeps_the_quantizer_in_front_of_relu() -> None:
    b = Builder()
    y = b.conv("x", "one", 3, 8)
    found = placement_of(classified(b, b.op("Add", [b.conv(b.relu(y, "act"), "two", 8, 8), y], "sum"), 8))
    assert found.fused == {}
    assert {"one_out", "act_out", "two_out", "sum_out"} <= set(found.storage)


@pytest.mark.parametrize("tensor", ["one_out", "act_out"])
def test_b_graph_outputs_that_no_layer_reads_stay_float(tensor: str) -> None:
    b = Builder()
    y = b.relu(b.conv("x", "one", 3, 8), "act")
    pooled = b.op("MaxPool", [y], "pool", kernel_shape=[2, 2], strides=[2, 2])
    model = classified(b, b.conv(pooled, "two", 8, 8), 8)
    found = placement_of(with_outputs(model, **{tensor: [8, 8, 8]}))
    assert tensor not in {*found.storage, *found.inherited}
    assert found.fused == {}


# --------------------------------------------------------------------------------------------------------------- rule c


def test_c_sums_and_pools_of_quantized_tensors_are_stored() -> None:
    found = placement_of(residual_convnet())
    assert "b_relu_out" in found.storage
    # behind the Add its Relu, not the Add itself
    assert "b_add_out" not in found.storage
    # global pooling has a grid of its own, Flatten keeps it
    assert "gap_out" in found.storage
    assert found.inherited == {"flatten_out": "gap_out"}


def test_c_concat_has_a_grid_of_its_own_and_max_pool_keeps_its_inputs() -> None:
    found = placement_of(concat_net())
    assert "concat_out" in found.storage
    assert found.inherited == {"pool_out": "stem_relu_out"}
    assert found.root("pool_out") == "stem_relu_out"
    assert found.root("concat_out") == "concat_out"


def test_c_what_nothing_but_a_concat_reads_is_joined() -> None:
    assert placement_of(concat_net()).joined == {"expand1_relu_out": "concat_out", "expand3_relu_out": "concat_out"}
    b = Builder()
    one, two = b.conv("x", "one", 3, 4), b.conv("x", "two", 3, 4)
    first = b.op("Concat", [one, two], "first", axis=1)
    third = b.conv(two, "three", 4, 4)
    second = b.op("Concat", [first, third, third], "second", axis=1)
    # `two` is read by a layer as well
    joined = placement_of(classified(b, second, 16)).joined
    assert joined == {"one_out": "first_out", "first_out": "second_out", "three_out": "second_out"}


def test_c_nothing_is_stored_where_one_side_is_float() -> None:
    b = Builder()
    y = b.conv("x", "one", 3, 8)
    mixed = b.op("Add", [y, b.op("HardSwish", [y], "act")], "mixed")
    shifted = b.op("Mul", [y, b.constant("gain", 2.0)], "shifted")
    both = b.op("Mul", [y, b.op("Sigmoid", [y], "gate")], "gated")
    joined = b.op("Sum", [mixed, shifted, both], "joined")
    found = placement_of(classified(b, joined, 8))
    assert {"gate_out", "gated_out"} <= set(found.storage)
    assert {"mixed_out", "shifted_out", "act_out"}.isdisjoint(found.storage)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "inherits"),
    [
        ("MaxPool", [], {"kernel_shape": [2, 2]}, True),
        ("Transpose", [], {"perm": [0, 1, 3, 2]}, True),
        ("Slice", ["zero_at", "four_at", "axis"], {}, True),
        ("Pad", ["pads"], {}, True),
        ("Pad", ["pads", "nought"], {}, True),
        ("Pad", ["pads", "one"], {}, False),
        ("Pad", ["pads"], {"mode": "reflect"}, True),
        ("Gather", ["picks"], {"axis": 2}, True),
        ("AveragePool", [], {"kernel_shape": [2, 2]}, False),
        ("LeakyRelu", [], {"alpha": 0.1}, False),
    ],
)
def test_c_operators_that_only_move_values_keep_the_grid(
    op_type: str, inputs: list[str], attributes: dict[str, Any], inherits: bool
) -> None:
    b = Builder()
    for name, value in (("zero_at", [0]), ("four_at", [4]), ("axis", [2]), ("picks", [1, 2, 3])):
        b.constant(name, value, np.int64)
    b.constant("pads", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    b.constant("nought", 0.0)
    b.constant("one", 1.0)
    y = b.op(op_type, [b.conv("x", "one_conv", 3, 8), *inputs], "move", **attributes)
    found = placement_of(classified(b, b.conv(y, "two", 8, 8), 8))
    assert found.inherited.get("move_out") == ("one_conv_out" if inherits else None)
    assert ("move_out" in found.storage) is not inherits


def test_c_indices_of_max_pool_are_no_activations() -> None:
    b = Builder()
    y = b.relu(b.conv("x", "one", 3, 8), "act")
    pooled = b.op("MaxPool", [y], "pool", outputs=["pooled", "where"], kernel_shape=[2, 2], strides=[2, 2])
    scale = b.op("Cast", [b.op("ReduceMax", ["where"], "top", keepdims=0)], "number", to=TensorProto.FLOAT)
    found = placement_of(classified(b, b.op("Div", [b.conv(pooled, "two", 8, 8), scale], "ratio"), 8))
    assert found.inherited["pooled"] == "act_out"
    assert "where" not in found.inherited


# --------------------------------------------------------------------------------------------------------------- direct


def test_direct_where_the_layers_of_a_group_are_the_only_readers() -> None:
    found = placement_of(residual_convnet())
    # stem_relu_out also feeds a shortcut; flatten_out only inherits a grid
    assert found.direct == {"x", "a1_relu_out", "a_relu_out", "b1_relu_out"}


def test_direct_in_spite_of_a_reader_of_the_shape() -> None:
    b = Builder()
    y = b.relu(b.conv("x", "one", 3, 8), "act")
    size = b.op("Gather", [b.op("Shape", [y], "shape"), b.constant("last", 3, np.int64)], "size")
    factor = b.op("Cast", [size], "number", to=TensorProto.FLOAT)
    found = placement_of(classified(b, b.op("Div", [b.conv(y, "two", 8, 8), factor], "ratio"), 8))
    assert "act_out" in found.direct
    assert found.fused["act_out"] == "one_out"


def test_both_sides_of_a_matmul_of_activations_are_groups() -> None:
    _, network, found = searched(attention_net())
    groups = {layer.name: layer.groups for layer in network.layers}
    assert groups["scores"] == ("q_order_out", "k_order_out")
    assert {*groups["scores"], *groups["mix"]} <= found.direct
    # LayerNormalization is float, so the residual stream is; its readers are not
    assert "add1_out" not in found.storage
    assert {"patch_tokens", "norm1_out", "norm2_out"} <= set(found.storage)
    # nor are the tokens that it begins with, since their product of matrices may give floats
    assert "to_tokens_out" not in found.storage


def test_what_the_first_output_does_not_depend_on_stays_in_float() -> None:
    found = placement_of(auxiliary_net())
    assert found.storage == ("x", "stem_relu_out", "last_relu_out", "gap_out")
    assert found.inherited == {"flatten_out": "gap_out"}
    # the head reads the stem, too, and shall see no fewer than 8 bits
    assert found.direct == {"x"}


@pytest.mark.parametrize("name", SMALL)
def test_storage_is_in_topological_order(name: str) -> None:
    graph, _, found = searched(SMALL[name]())
    order = [graph.input, *(tensor for node in graph.nodes for tensor in node.output)]
    assert list(found.storage) == sorted(found.storage, key=order.index)
    assert found.direct <= set(found.storage)


def test_bounds_of_relu_and_clip() -> None:
    b = Builder()
    y = b.relu(b.conv("x", "one", 3, 8), "relu")
    y = b.op("Clip", [y, b.constant("low", -1.0), b.constant("high", 2.5)], "both")
    y = b.op("Clip", [y, "low"], "lower")
    graph: Graph = searched(classified(b, b.conv(y, "two", 8, 8), 8))[0]
    assert clip_bounds(graph, graph.producer["relu_out"]) == (0.0, np.inf)
    assert clip_bounds(graph, graph.producer["both_out"]) == (-1.0, 2.5)
    assert clip_bounds(graph, graph.producer["lower_out"]) == (-1.0, np.inf)
