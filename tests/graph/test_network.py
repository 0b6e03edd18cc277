"""Layers, their figures, groups and what is skipped."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from infoq_onnx.errors import ModelError
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.load import load_model
from infoq_onnx.graph.network import find_network
from infoq_onnx.graph.normalize import normalize
from infoq_onnx.schema import Layer, Network
from tests.networks import (
    SMALL,
    Builder,
    attention_net,
    auxiliary_net,
    concat_net,
    depthwise_net,
    fixed_batch_net,
    residual_convnet,
    resnet18,
)


def network_of(model: onnx.ModelProto) -> Network:
    return find_network(Graph(normalize(model)))


def only_layer(b: Builder, output: str, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Layer:
    """Return the one layer of a net that ends in a mean to class scores."""
    axes = list(range(2, 1 + len(output_shape)))
    y = b.op("ReduceMean", [output], "mean", axes=axes, keepdims=0) if axes else output
    (layer,) = network_of(b.model(y, input_shape, output_shape[:1])).layers
    return layer


def test_resnet18_figures() -> None:
    """MACs are counted for one image, biases are not parameters."""
    network = network_of(resnet18())
    layers = {layer.name: layer for layer in network.layers}
    assert len(layers) == 21
    assert sum(layer.macs for layer in network.layers) == 1_814_073_344
    assert layers["conv1"].macs == 118_013_952
    assert layers["fc"].macs == 512_000
    assert sum(layer.parameters for layer in network.layers) == 11_678_912
    assert layers["conv1"].parameters == 9_408
    assert layers["fc"].parameters == 512_000
    assert network.classes == 1000


def test_residual_convnet() -> None:
    network = network_of(residual_convnet())
    assert [layer.name for layer in network.layers] == ["stem", "a1", "a2", "b1", "b2", "b_short", "fc"]
    layers = {layer.name: layer for layer in network.layers}
    assert layers["b1"] == Layer(
        name="b1",
        op_type="Conv",
        groups=("a_relu_out",),
        weight="b1_w",
        weight_shape=(16, 8, 3, 3),
        channel_axis=0,
        bias="b1_b",
        output="b1_out",
        observed="b1_relu_out",
        output_shape=(16, 8, 8),
        parameters=16 * 8 * 9,
        macs=16 * 8 * 8 * 8 * 9,
    )
    assert {name: layer.observed for name, layer in layers.items()} == {
        "stem": "stem_relu_out",
        "a1": "a1_relu_out",
        "a2": "a_relu_out",
        "b1": "b1_relu_out",
        "b2": "b_relu_out",
        "b_short": "b_relu_out",
        "fc": "logits",
    }
    groups = {group.name: group for group in network.groups}
    assert list(groups) == ["x", "stem_relu_out", "a1_relu_out", "a_relu_out", "b1_relu_out", "flatten_out"]
    assert groups["a_relu_out"].layers == ("b1", "b_short")
    assert (groups["a_relu_out"].shape, groups["a_relu_out"].elements) == ((8, 16, 16), 8 * 16 * 16)
    assert (network.input, network.input_shape, network.output, network.classes) == ("x", (3, 16, 16), "logits", 10)
    assert (network.batch, network.opset, network.skipped) == (None, 17, ())


@pytest.mark.parametrize("name", SMALL)
def test_layers_refer_to_the_graph(name: str) -> None:
    graph = Graph(normalize(SMALL[name]()))
    network = find_network(graph)
    order = [node.name for node in graph.nodes]
    assert [order.index(layer.name) for layer in network.layers] == sorted(
        order.index(layer.name) for layer in network.layers
    )
    for layer in network.layers:
        assert layer.observed in graph.descendants([layer.output])
        assert layer.parameters == math.prod(layer.weight_shape) * (layer.weight is not None)
        assert (layer.weight is None) == (layer.channel_axis is None)
    assert {name for layer in network.layers for name in layer.groups} == {group.name for group in network.groups}


def test_fixed_batch_changes_no_figure() -> None:
    free, fixed = network_of(residual_convnet()), network_of(fixed_batch_net())
    assert fixed.batch == 1
    assert fixed.layers == free.layers
    assert network_of(residual_convnet(batch=4)).layers == free.layers


def test_depthwise_and_head() -> None:
    layers = {layer.name: layer for layer in network_of(depthwise_net()).layers}
    assert layers["dw1"].macs == 8 * 8 * 8 * 9
    assert layers["project1"].observed == "add_out"
    assert layers["dw1"].observed == "dw1_relu6_out"
    assert (layers["head"].op_type, layers["head"].weight_shape) == ("Gemm", (10, 32))


def test_layers_that_share_an_input() -> None:
    groups = {group.name: group.layers for group in network_of(concat_net()).groups}
    assert groups["squeeze_relu_out"] == ("expand1", "expand3")


def test_attention() -> None:
    network = network_of(attention_net())
    layers = {layer.name: layer for layer in network.layers}
    assert len(layers) == 10
    scores = layers["scores"]
    assert (scores.groups, scores.weight, scores.channel_axis) == (("q_order_out", "k_order_out"), None, None)
    assert (scores.parameters, scores.weight_shape, scores.macs) == (0, (), 2 * 16 * 16 * 8)
    assert layers["mix"].macs == 2 * 16 * 8 * 16
    assert (layers["q"].channel_axis, layers["q"].macs, layers["q"].bias) == (1, 16 * 16 * 16, "q_b")
    assert layers["q"].observed == "q_add_out"
    assert layers["mlp1"].observed == "mlp_act_out"
    assert layers["mlp2"].observed == "add2_out"
    groups = {group.name: group.layers for group in network.groups}
    assert groups["norm1_out"] == ("q", "k", "v")


@pytest.mark.parametrize(
    ("shape", "outputs", "swapped", "bias"),
    [
        ((4,), 1, False, "b"),
        ((4,), 1, True, "b"),
        ((1, 4), 1, False, None),
        ((1,), 1, False, None),
        ((4,), 2, False, None),  # the product itself is seen, too
    ],
)
def test_what_an_add_behind_a_matmul_adds(
    shape: tuple[int, ...], outputs: int, swapped: bool, bias: str | None
) -> None:
    b = Builder()
    y = b.op("MatMul", ["x", b.normal("w", 6, 4)], "one")
    constant = b.normal("b", *shape)
    total = b.op("Add", [constant, y] if swapped else [y, constant], "add")
    model = b.model(b.op("Flatten", [total], "flat", axis=1), (3, 6), (12,))
    if outputs == 2:
        model.graph.output.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, ["N", 3, 4]))
    assert network_of(model).layers[0].bias == bias


def test_a_constant_that_two_add_is_no_bias() -> None:
    b = Builder()
    b.normal("b", 6)
    y = "x"
    for name in ("one", "two"):
        y = b.op("Add", [b.op("MatMul", [y, b.normal(f"{name}_w", 6, 6)], name), "b"], f"{name}_add")
    model = b.model(b.op("Flatten", [y], "flat", axis=1), (3, 6), (18,))
    assert [layer.bias for layer in network_of(model).layers] == [None] * 2


@pytest.mark.parametrize(("group", "bias"), [(1, True), (2, False), (4, True)])
def test_conv_transpose(group: int, bias: bool) -> None:
    b = Builder()
    inputs = ["x", b.normal("w", 4, 8 // group, 3, 3)] + ([b.normal("b", 8)] if bias else [])
    y = b.op("ConvTranspose", inputs, "up", group=group, strides=[2, 2])
    layer = only_layer(b, y, (4, 5, 5), (8, 11, 11))
    assert (layer.channel_axis, layer.bias) == (1, "b" if bias else None)
    assert layer.macs == 5 * 5 * 4 * (8 // group) * 9
    assert layer.parameters == 4 * (8 // group) * 9


def test_conv_of_one_and_three_dimensions() -> None:
    b = Builder()
    layer = only_layer(b, b.op("Conv", ["x", b.normal("w", 6, 2, 3)], "conv", group=2), (4, 9), (6, 7))
    assert layer.macs == 6 * 7 * 2 * 3
    b = Builder()
    layer = only_layer(b, b.op("Conv", ["x", b.normal("w", 6, 2, 3, 3, 3)], "conv"), (2, 5, 5, 5), (6, 3, 3, 3))
    assert layer.macs == 6 * 27 * 2 * 27


def test_layers_without_elements() -> None:
    b = Builder()
    nothing = b.gemm("x", "empty", 5, 0)
    model = b.model(b.op("Concat", [nothing, b.gemm("x", "fc", 5, 7)], "joined", axis=1), (5,), (7,))
    with pytest.raises(ModelError, match="'empty' multiplies tensors of size 0"):
        network_of(model)


def test_constant_on_either_side_of_matmul() -> None:
    b = Builder()
    right = only_layer(b, b.op("MatMul", ["x", b.normal("w", 5, 7)], "right"), (3, 5), (3, 7))
    assert (right.channel_axis, right.macs) == (1, 3 * 7 * 5)
    b = Builder()
    left = only_layer(b, b.op("MatMul", [b.normal("w", 7, 3), "x"], "left"), (3, 5), (7, 5))
    assert (left.channel_axis, left.macs, left.groups) == (0, 7 * 5 * 3, ("x",))


def test_matmul_of_a_tensor_with_itself() -> None:
    b = Builder()
    network = network_of(
        b.model(b.op("ReduceMean", [b.op("MatMul", ["x", "x"], "square")], "m", axes=[2], keepdims=0), (4, 4), (4,))
    )
    assert network.layers[0].groups == ("x", "x")
    assert [group.layers for group in network.groups] == [("square",)]


def test_observed_stops_at_branches_outputs_and_the_second_add() -> None:
    b = Builder()
    first = b.op("Add", [b.gemm("x", "fc1", 4, 4), "x"], "add1")
    second = b.op("Add", [first, "x"], "add2")
    shared = b.gemm(second, "fc2", 4, 4)
    third = b.op("Mul", [shared, b.op("Sigmoid", [shared], "gate")], "swish")
    shown = b.gemm(third, "fc3", 4, 4)
    slope = b.constant("slope", [0.1])
    last = b.gemm(b.op("PRelu", [shown, slope], "prelu"), "fc4", 4, 3)
    model = b.model(last, (4,), (3,))
    model.graph.output.append(helper.make_tensor_value_info("fc3_out", TensorProto.FLOAT, ["batch", 4]))
    observed = {layer.name: layer.observed for layer in network_of(model).layers}
    assert observed == {"fc1": "add1_out", "fc2": "fc2_out", "fc3": "fc3_out", "fc4": "logits"}


def test_skipped_nodes_say_why() -> None:
    b = Builder()
    y = b.gemm("x", "fc", 4, 4)
    square = b.op("Reshape", [y, b.constant("grid", [-1, 1, 2, 2], np.int64)], "grid_of")
    kernel = b.op("ReduceMean", [square], "kernel", axes=[0])
    b.op("Conv", [square, kernel], "dynamic")
    b.op("Reshape", ["dynamic_out", b.constant("flat", [-1, 1], np.int64)], "dynamic_flat")
    b.op(
        "Gemm",
        [
            y,
            b.op("ReduceMean", [y], "row", axes=[0]),
        ],
        "gemm_of_two",
        transB=1,
    )
    b.op("MatMul", [y, b.normal("vector", 4)], "with_vector")
    b.op("Reshape", ["with_vector_out", "flat"], "vector_flat")
    b.op("MatMul", ["grid_of_out", b.normal("stack", 3, 2, 2)], "with_stack")
    b.op("Reshape", ["with_stack_out", b.constant("flat_stack", [-1, 12], np.int64)], "stack_flat")
    b.op("Einsum", [y, b.normal("e", 4, 4), b.normal("f", 4, 4)], "einsum", equation="bi,ij,jk->bk")
    half = b.op("Cast", [y], "half", to=TensorProto.FLOAT16)
    b.constant("half_w", np.ones((4, 4)), np.float16)
    b.op("Cast", [b.op("MatMul", [half, "half_w"], "half_product")], "single", to=TensorProto.FLOAT)
    index = b.op(
        "Cast",
        [b.op("Clip", ["gemm_of_two_out", b.constant("lo", 0.0), b.constant("hi", 1.0)], "clip")],
        "index",
        to=TensorProto.INT64,
    )
    table = b.op("Gather", [b.normal("table", 2, 4), index], "embedding", axis=0)
    b.op("Reshape", [table, b.constant("rows", [-1, 4], np.int64)], "rows_of")
    parts = ["dynamic_flat", "vector_flat", "stack_flat", "einsum", "single", "rows_of"]
    b.op("Concat", [y, *(f"{part}_out" for part in parts)], "all", axis=1)
    network = network_of(b.model("all_out", (4,), (30,)))
    assert [layer.name for layer in network.layers] == ["fc"]
    reasons = {node.name: node.reason for node in network.skipped}
    assert reasons == {
        "dynamic": "its weight is computed at run time",
        "gemm_of_two": "its weight is computed at run time",
        "with_vector": "one of its inputs is a vector, not a matrix",
        "with_stack": "its weight is a stack of matrices, for which onnxruntime has no integer kernel",
        "einsum": "Einsum is kept in float; export it as MatMul to quantize it",
        "half_product": "its input 'half_out' is float16, not float32",
        "embedding": "embedding tables are kept in float",
    }


def test_what_the_first_output_does_not_depend_on_is_skipped() -> None:
    network = network_of(auxiliary_net())
    assert [layer.name for layer in network.layers] == ["stem", "last", "fc"]
    assert [group.layers for group in network.groups] == [("stem",), ("last",), ("fc",)]
    reason = "the class scores do not depend on it"
    assert {node.name: node.reason for node in network.skipped} == {"aux_conv": reason, "aux_fc": reason}


def test_layers_inside_a_subgraph_are_skipped() -> None:
    b = Builder()
    hidden = b.gemm("x", "fc", 4, 4)
    weight = b.normal("inner_w", 4, 4)
    end = helper.make_tensor_value_info("branch_out", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("MatMul", [hidden, weight], ["branch_out"])], "branch", [], [end])
    condition = b.op("Greater", [b.op("ReduceMean", ["x"], "mean", keepdims=0), b.constant("zero", 0.0)], "positive")
    y = b.op("If", [condition], "if", then_branch=branch, else_branch=branch)
    network = network_of(b.model(y, (4,), (4,)))
    assert [(node.name, node.op_type) for node in network.skipped] == [("if", "If")]
    assert "inside the subgraph" in network.skipped[0].reason


def test_nothing_to_quantize() -> None:
    b = Builder()
    with pytest.raises(ModelError, match=r"nothing to quantize: .* among Neg, Relu"):
        network_of(b.model(b.relu(b.op("Neg", ["x"], "neg"), "relu"), (4,), (4,)))


def test_nothing_to_quantize_in_front_of_the_first_output() -> None:
    b = Builder()
    b.gemm("x", "fc", 4, 4)
    model = b.model(b.relu(b.op("Neg", ["x"], "neg"), "relu"), (4,), (4,))
    model.graph.output.append(helper.make_tensor_value_info("fc_out", TensorProto.FLOAT, ["batch", 4]))
    with pytest.raises(ModelError, match=r"nothing to quantize: .* among Neg, Relu"):
        network_of(model)


@pytest.mark.parametrize(("shape", "classes"), [((5,), 5), ((5, 1, 1), 5), ((1, 1, 5), 5)])
def test_classes(shape: tuple[int, ...], classes: int) -> None:
    b = Builder()
    y = b.op("Reshape", [b.gemm("x", "fc", 4, 5), b.constant("shape", [-1, *shape], np.int64)], "shaped")
    assert network_of(b.model(y, (4,), shape)).classes == classes


@pytest.mark.parametrize("kind", ["map", "one", "labels", "no batch"])
def test_output_that_is_not_class_scores(kind: str) -> None:
    b = Builder()
    y = b.gemm("x", "fc", 4, 6)
    shape: tuple[int, ...] = (2, 3)
    if kind == "map":
        y = b.op("Reshape", [y, b.constant("shape", [-1, 2, 3], np.int64)], "shaped")
    elif kind == "one":
        y, shape = b.op("ReduceMean", [y], "mean", axes=[1]), (1,)
    elif kind == "labels":
        y, shape = b.op("Softmax", [b.op("Transpose", [y], "turn", perm=[1, 0])], "softmax"), (6,)
    else:
        y, shape = b.op("ReduceMean", [y], "mean", axes=[0], keepdims=0), ()
    told = r"one score an image.* torch.cat" if kind == "one" else r"not float32 \[batch, classes\]"
    with pytest.raises(ModelError, match=r"output 'logits' is float32 .*, " + told):
        network_of(b.model(y, (4,), shape))


REAL = {
    "cifar10_resnet20.onnx": (20, 40_551_040, 268_336, 10),
    "mobilenetv2.onnx": (53, 300_774_272, 3_469_760, 1000),
    "squeezenet1_1.onnx": (26, 349_151_936, 1_231_552, 1000),
    "mobilenetv1_025.onnx": (28, 41_030_272, 463_600, 1000),
    "vit_tiny.onnx": (74, 1_253_683_200, 5_647_872, 1000),
}


@pytest.mark.parametrize("name", REAL)
def test_real_networks(shared: Path, name: str) -> None:
    network = network_of(load_model(shared / "models" / name))
    macs, parameters = (sum(getattr(layer, key) for layer in network.layers) for key in ("macs", "parameters"))
    assert (len(network.layers), macs, parameters, network.classes) == REAL[name]
    assert network.skipped == ()
    assert network.layers[-1].observed in ("logits", "conv25_relu")
