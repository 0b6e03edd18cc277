"""Fused operators taken apart compute the same, and their layers are found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.network import find_network
from infoq_onnx.graph.normalize import normalize
from infoq_onnx.graph.passes.unfuse import unfuse
from tests.graph.compare import assert_same_outputs

RNG = np.random.default_rng(0)
TOKENS, WIDTH = 5, 8


def weight(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array((RNG.standard_normal(shape) * 0.5).astype(np.float32), name)


def model(nodes: list[onnx.NodeProto], constants: list[TensorProto], opset: int = 17) -> onnx.ModelProto:
    """Tokens in, which `nodes` turn from `x` into `y`; then the mean over tokens and a classifier."""
    tail = [
        helper.make_node("GlobalAveragePool", ["turned"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head"], ["logits"], "head", transB=1),
    ]
    turn = helper.make_node("Transpose", ["y"], ["turned"], perm=[0, 2, 1])
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", TOKENS, WIDTH]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3]),
    ]
    graph = helper.make_graph([*nodes, turn, *tail], "g", ends[:1], ends[1:], [*constants, weight("head", 3, WIDTH)])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=11 if opset > 21 else 8)


def fused(op_type: str, inputs: list[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, ["y"], "fused", domain="com.microsoft", **attributes)


def projections() -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    nodes = [helper.make_node("MatMul", ["x", f"w{part}"], [part], part) for part in "qkv"]
    return nodes, [weight(f"w{part}", WIDTH, WIDTH) for part in "qkv"]


def standard_attention() -> onnx.ModelProto:
    nodes, constants = projections()
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], "fused", q_num_heads=2, kv_num_heads=2)
    return model([*nodes, node], constants, opset=23)


def microsoft_attention() -> onnx.ModelProto:
    constants = [weight("w", WIDTH, 3 * WIDTH), weight("b", 3 * WIDTH)]
    return model([fused("Attention", ["x", "w", "b"], num_heads=2)], constants)


def multi_head_attention() -> onnx.ModelProto:
    nodes, constants = projections()
    return model([*nodes, fused("MultiHeadAttention", ["q", "k", "v"], num_heads=4)], constants)


def skip_layer_normalization() -> onnx.ModelProto:
    constants = [weight("w", WIDTH, WIDTH), weight("gamma", WIDTH), weight("beta", WIDTH), weight("bias", WIDTH)]
    product = helper.make_node("MatMul", ["x", "w"], ["product"], "product")
    return model([product, fused("SkipLayerNormalization", ["x", "product", "gamma", "beta", "bias"])], constants)


def bias_gelu() -> onnx.ModelProto:
    product = helper.make_node("MatMul", ["x", "w"], ["product"], "product")
    return model([product, fused("BiasGelu", ["product", "b"])], [weight("w", WIDTH, WIDTH), weight("b", WIDTH)])


def matmul() -> onnx.ModelProto:
    return model([fused("FusedMatMul", ["x", "w"], alpha=0.5, transB=1)], [weight("w", WIDTH, WIDTH)])


def two_activations() -> onnx.ModelProto:
    nodes, constants = projections()
    scores = helper.make_node("FusedMatMul", ["q", "k"], ["s"], "scores", domain="com.microsoft", alpha=0.3, transB=1)
    return model([*nodes, scores, helper.make_node("MatMul", ["s", "v"], ["y"], "mix")], constants)


CASES: dict[Callable[[], onnx.ModelProto], int] = {
    standard_attention: 6,
    microsoft_attention: 4,
    multi_head_attention: 6,
    skip_layer_normalization: 2,
    bias_gelu: 2,
    matmul: 2,
    two_activations: 6,
}


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_it_computes_the_same_and_every_product_is_a_layer(make: Callable[[], onnx.ModelProto]) -> None:
    before = make()
    after = normalize(before)
    assert not [node.op_type for node in after.graph.node if node.domain or node.op_type == "Attention"]
    assert_same_outputs(before, after)
    network = find_network(Graph(after))
    assert (len(network.layers), network.skipped) == (CASES[make], ())


@pytest.mark.parametrize("op_type", ["FusedConv", "FusedGemm"])
def test_an_activation_behind(op_type: str) -> None:
    constants = [weight("w", 4, WIDTH, 1), weight("b", 4)] if op_type == "FusedConv" else [weight("w", WIDTH, 4)]
    attributes: dict[str, object] = {"kernel_shape": [1]} if op_type == "FusedConv" else {}
    inputs = ["x", *(tensor.name for tensor in constants)]
    shape = ["n", WIDTH, 6] if op_type == "FusedConv" else ["n", WIDTH]
    output = ["n", 4, 6] if op_type == "FusedConv" else ["n", 4]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", output))]
    node = fused(op_type, inputs, activation="Relu", **attributes)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    before = helper.make_model(
        helper.make_graph([node], "g", ends[:1], ends[1:], constants), opset_imports=imports, ir_version=8
    )
    after = onnx.ModelProto()
    after.CopyFrom(before)
    assert unfuse(after) == 1
    assert [one.op_type for one in after.graph.node] == [op_type.removeprefix("Fused"), "Relu"]
    assert_same_outputs(before, after)


def test_what_it_does_not_know_stays() -> None:
    constants = [weight("w", WIDTH, 3 * WIDTH), weight("b", 3 * WIDTH)]
    masked = model([fused("Attention", ["x", "w", "b"], num_heads=2, unidirectional=1)], constants)
    assert unfuse(masked) == 0
