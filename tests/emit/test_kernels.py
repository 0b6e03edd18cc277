"""lint: what runs as an integer kernel, and what keeps the rest in float, for anybody's Q/DQ model."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from infoq_onnx.emit.kernels import find_kernels, left_in_float
from infoq_onnx.emit.qdq import qdq_model
from infoq_onnx.emit.storage import STORAGES
from infoq_onnx.schema import Kernel
from infoq_onnx.simulate.simulation import layer_codes
from tests.networks import SMALL
from tests.prepared import small
from tests.simulate.rounded import left_constant, made

from .test_onnxruntime import CHANNELS, Quantized


def only(b: Quantized, y: str, layer: str) -> tuple[bool, str]:
    """Verdict on one layer of a graph that ends in something float."""
    (found,) = [k for k in find_kernels(b.finish(b.op("Tanh", [y], "end"))) if k.layer == layer]
    return found.integer, found.reason


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", ["residual", "depthwise", "concat", "mlp"])
def test_every_layer_that_we_emit_is_an_integer_kernel(name: str, storage: str) -> None:
    of = small(name)
    bits = of.mixed(seed=2)
    codes = layer_codes(of.quantizable, bits)
    model = qdq_model(of.quantizable, bits, codes, STORAGES[storage], {})
    before = model.SerializeToString()
    found = find_kernels(model)
    assert [kernel.layer for kernel in found] == [layer.name for layer in of.network.layers]
    assert all(kernel.integer and not kernel.reason for kernel in found)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("name", SMALL)
def test_a_float_model_has_none_and_every_layer_says_why(name: str) -> None:
    found = find_kernels(small(name).graph.model)
    assert len(found) >= len(small(name).network.layers)
    assert not any(kernel.integer for kernel in found)
    assert all("float" in kernel.reason for kernel in found)


def test_what_is_between_two_quantizers() -> None:
    b = Quantized()
    y = b.quantize(b.integer_conv(b.quantize("x", "in"), "one", 3), "between")
    assert only(b, y, "one") == (True, "")


def test_no_quantizer_in_front() -> None:
    b = Quantized()
    integer, reason = only(b, b.quantize(b.integer_conv(b.op("Sigmoid", ["x"], "act"), "one", 3), "out"), "one")
    assert (integer, reason) == (
        False,
        "input act_out comes from Sigmoid in float: no QuantizeLinear and DequantizeLinear between",
    )


def test_no_quantizer_behind() -> None:
    b = Quantized()
    integer, reason = only(b, b.integer_conv(b.quantize("x", "in"), "one", 3), "one")
    assert not integer
    assert reason == "its output one_out is read by Tanh in float: no QuantizeLinear straight behind"


def test_a_float_clip_behind() -> None:
    b = Quantized()
    y = b.op("Clip", [b.integer_conv(b.quantize("x", "in"), "one", 3), b.constant("a", 0.0), b.constant("b", 0.3)], "c")
    integer, reason = only(b, b.quantize(y, "out"), "one")
    assert not integer
    assert "read by Clip in float" in reason


def test_an_output_of_the_graph() -> None:
    b = Quantized()
    y = b.integer_conv(b.quantize("x", "in"), "one", 3)
    (found,) = find_kernels(b.finish(y))
    assert "is an output of the graph" in found.reason


def test_float_weights_are_quantized_by_onnxruntime() -> None:
    b = Quantized()
    weight = b.constant("w", np.ones((CHANNELS, 3, 3, 3)))
    y = b.quantize(b.op("Conv", [b.quantize("x", "in"), weight], "one", pads=[1] * 4), "out")
    assert only(b, y, "one") == (True, "")


def test_a_bias_in_other_units() -> None:
    b = Quantized()
    y = b.quantize(b.integer_conv(b.quantize("x", "in"), "one", 3, bias="int32 in other units"), "out")
    integer, reason = only(b, y, "one")
    assert not integer
    assert "units of input scale × weight scale" in reason


def test_int4_straight_behind_dequantize_linear() -> None:
    of = small("residual")
    bits = of.uniform(4, 8)
    codes = layer_codes(of.quantizable, bits)
    model = qdq_model(of.quantizable, bits, codes, STORAGES["native"], {})
    casts = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in casts:
                node.input[index] = casts[name]
    zeros = [
        node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[-1].endswith("/zeros")
    ]
    for node in zeros:
        del node.input[2]
    reasons = Counter(kernel.reason for kernel in find_kernels(model) if kernel.op_type == "Conv")
    assert list(reasons) == ["weights are INT4: DequantizeLinear must read INT8 or UINT8 (put a Cast in between)"]


def test_an_output_that_is_wanted_in_float_too() -> None:
    of = small("mlp")
    bits = of.uniform(8, 8)
    codes = layer_codes(of.quantizable, bits)
    model = qdq_model(of.quantizable, bits, codes, STORAGES["int8"], {})
    (first,) = [node for node in model.graph.node if node.name == "fc1"]
    model.graph.output.append(helper.make_tensor_value_info(first.output[0], TensorProto.FLOAT, ["batch", 16]))
    verdict, *others = find_kernels(model)
    assert verdict.reason == f"its output {first.output[0]} is wanted both quantized and in float: " + (
        "integer kernels give one of them"
    )
    assert all(kernel.integer for kernel in others)


def test_a_weight_on_the_left() -> None:
    of = made(left_constant(), 32)
    bits = of.uniform(8, 8)
    codes = layer_codes(of.quantizable, bits)
    model = qdq_model(of.quantizable, bits, codes, STORAGES["int8"], {})
    verdict = {kernel.layer: kernel for kernel in find_kernels(model)}["left"]
    assert not verdict.integer
    assert "is on the left: integer kernels take it on the right; export W·x as the transpose" in verdict.reason


def test_nodes_without_names_are_called_by_their_outputs() -> None:
    b = Quantized()
    y = b.quantize(b.integer_conv(b.quantize("x", "in"), "one", 3), "between")
    model = b.finish(b.op("Tanh", [y], "end"))
    for node in model.graph.node:
        node.name = ""
    assert [kernel.layer for kernel in find_kernels(model)] == ["one_out"]


def test_a_model_without_layers() -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "none",
        [value("x", TensorProto.FLOAT, [1, 3])],
        [value("y", TensorProto.FLOAT, [1, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    assert find_kernels(model) == ()


def linear_with_a_fixed_batch(rank: int) -> onnx.ModelProto:
    """Somebody's MatMul and Add of [N] in a graph whose shapes are all known; [1, N] with `rank` 2."""
    b = Quantized()
    weight = b.dequantized("w", b.random.integers(-60, 60, (6, 8)).astype(np.int8), np.full(8, 0.01, np.float32))
    b.nodes[-1].attribute[0].i = 1
    product = b.op("MatMul", [b.quantize("x", "in"), weight], "product")
    y = b.op("Add", [product, b.constant("row", np.ones((1, 8) if rank == 2 else 8))], "sum")
    return b.model(b.op("Tanh", [y], "end"), (3, 6), (3, 8), batch=1)


def test_a_sum_that_makes_a_product_a_float_gemm_is_blamed() -> None:
    (found,) = find_kernels(linear_with_a_fixed_batch(1))
    assert (found.integer, found.runs) == (False, "Gemm")
    assert "MatMulAddFusion" in found.reason
    assert "row" in found.reason
    assert find_kernels(linear_with_a_fixed_batch(2))[0].integer


@pytest.mark.parametrize("clipped_by", ["Relu", "Clip", "Max"])
def test_a_relu_that_no_quantizer_is_behind_is_blamed(clipped_by: str) -> None:
    b = Quantized()
    weight = b.dequantized("w", b.random.integers(-60, 60, (6, 8)).astype(np.int8), np.full(8, 0.01, np.float32))
    b.nodes[-1].attribute[0].i = 1
    product = b.op("MatMul", [b.quantize("x", "in"), weight], "product")
    bounds = [] if clipped_by == "Relu" else [b.constant("zero", np.array(0, dtype=np.float32))]
    y = b.op("Tanh", [b.op(clipped_by, [product, *bounds], "clipped")], "end")
    (found,) = find_kernels(b.model(y, (6,), (8,)))
    assert found.integer == (clipped_by == "Max")
    assert found.integer or f"a {clipped_by} is behind it" in found.reason


def test_what_could_be_an_integer_kernel_and_is_none_is_found() -> None:
    of = small("attention")
    kernels = [
        Kernel(layer.name, layer.op_type, layer.op_type, integer=False, reason="why") for layer in of.network.layers
    ]
    assert [kernel.layer for kernel in left_in_float(of.graph, of.network, kernels)] == [
        layer.name for layer in of.network.layers
    ]
    integer = [dataclasses.replace(kernel, integer=True) for kernel in kernels]
    assert left_in_float(of.graph, of.network, integer) == ()
    # there is no integer ConvTranspose
    of = small("batchnorm")
    kernels = [Kernel(layer.name, layer.op_type, layer.op_type, False, "why") for layer in of.network.layers]
    assert {kernel.op_type for kernel in left_in_float(of.graph, of.network, kernels)} == {"Conv", "Gemm"}


def tampered(cause: str, model: onnx.ModelProto) -> None:
    """Break what an integer kernel needs, in a model that was emitted."""
    if cause == "output of the graph":
        conv = next(node for node in model.graph.node if node.op_type == "Conv")
        model.graph.output.add(name=conv.output[0])
    elif cause == "read in float":
        conv = next(node for node in model.graph.node if node.op_type == "Conv")
        model.graph.node.append(helper.make_node("Tanh", [conv.output[0]], ["beside"]))
        model.graph.output.add(name="beside")
    elif cause == "input in float":
        first = next(node for node in model.graph.node if node.op_type in ("Conv", "Gemm"))
        first.input[0] = model.graph.input[0].name


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("cause", ["left constant", "output of the graph", "read in float", "input in float"])
def test_reasons_are_the_same_however_weights_are_stored(cause: str, bits: int) -> None:
    """A packed weight is a constant, too."""
    of = made(left_constant(), 32, (bits,)) if cause == "left constant" else small("residual")
    widths = of.uniform(bits, 8)
    verdicts = []
    for storage in STORAGES.values():
        model = qdq_model(of.quantizable, widths, layer_codes(of.quantizable, widths), storage, {})
        tampered(cause, model)
        verdicts.append({kernel.layer: kernel.reason for kernel in find_kernels(model) if not kernel.integer})
    assert verdicts[0]
    assert verdicts[0] == verdicts[1] == verdicts[2]
