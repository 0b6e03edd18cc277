"""Which integer kernels saturate without VNNI: against the kernels themselves, where it is absent or can be hidden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from infoq_onnx.emit.kernels import find_kernels
from infoq_onnx.emit.qdq import qdq_model
from infoq_onnx.emit.saturation import with_unsigned_weights
from infoq_onnx.emit.storage import STORAGES
from infoq_onnx.emit.targets import meeting_at_8_bits, multiplies_in_pairs, saturating_layers
from infoq_onnx.graph.ort import run
from infoq_onnx.graph.session import open_session
from infoq_onnx.quantize.im2col import Windows, conv_columns
from infoq_onnx.quantize.saturation import kernel_rows, saturating_product
from infoq_onnx.simulate.simulation import layer_codes
from tests.networks import SMALL
from tests.prepared import small
from tests.processor import run_without_vnni

from .test_onnxruntime import CHANNELS, Quantized

CONVOLUTIONS = {
    # input channels, output channels, kernel, groups
    "1×1": (16, 32, (1, 1), 1),
    "3×3": (16, 16, (3, 3), 1),
    "3×3 on an image": (3, 8, (3, 3), 1),
    "odd": (5, 7, (3, 3), 1),
    "in groups": (16, 16, (3, 3), 4),
    "in odd groups": (6, 6, (3, 3), 2),
    "depthwise": (16, 16, (3, 3), 16),
    "two outputs a channel": (8, 16, (3, 3), 8),
    "of signals": (3, 8, (3,), 1),
    "depthwise of signals": (8, 8, (3,), 8),
    "of volumes": (4, 8, (2, 2, 2), 1),
    "depthwise of volumes": (4, 4, (2, 2, 2), 4),
}
_RUN = """
import json, sys
import numpy as np, onnxruntime
for model, values in zip(sys.argv[1::2], sys.argv[2::2]):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: np.load(values)}
    print(json.dumps(session.run(None, given)[0].astype(float).tolist()))
"""


def without_vnni(model: onnx.ModelProto, values: npt.NDArray[Any], folder: Path) -> npt.NDArray[np.float64]:
    onnx.save(model, folder / "model.onnx")
    np.save(folder / "values.npy", values)
    return np.array(json.loads(run_without_vnni("-c", _RUN, str(folder / "model.onnx"), str(folder / "values.npy"))))


def operator(node: onnx.NodeProto, kind: int, output: int, constants: dict[str, npt.NDArray[Any]]) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info("x", kind, None), helper.make_tensor_value_info("y", output, None)]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_saturate_in_the_pairs_that_are_said_to(name: str, tmp_path: Path) -> None:
    inputs, outputs, kernel, groups = CONVOLUTIONS[name]
    random = np.random.default_rng(0)
    weight = random.integers(-127, 128, (outputs, inputs // groups, *kernel)).astype(np.int8)
    images = random.integers(200, 256, (1, inputs, *(7,) * len(kernel))).astype(np.uint8)
    node = helper.make_node("QLinearConv", ["x", "xs", "z", "w", "ws", "wz", "ys", "yz"], ["y"], group=groups)
    scale = np.float32(255 * 127 * weight[0].size / 100)
    one, zero = np.ones((), dtype=np.float32), np.zeros((), dtype=np.uint8)
    constants = {"w": weight, "z": zero, "xs": one, "ws": one, "wz": zero.astype(np.int8)}
    model = operator(
        node, TensorProto.UINT8, TensorProto.UINT8, {**constants, "ys": scale * one, "yz": zero + np.uint8(128)}
    )
    found = without_vnni(model, images, tmp_path)

    rank = len(kernel)
    windows = Windows(kernel, (1,) * rank, (1,) * rank, (0,) * rank, (0,) * rank, groups)
    columns = conv_columns(images.astype(np.float32), windows).astype(np.int64)
    # from channels first to the order in which kernels read: positions first
    columns = columns.reshape(groups, -1, inputs // groups, int(np.prod(kernel))).swapaxes(2, 3)
    columns = columns.reshape(groups, len(columns[0]), -1)
    rows = kernel_rows(weight, 0, convolution=True).reshape(groups, outputs // groups, -1)
    exact = [c @ r.astype(np.int64).T for c, r in zip(columns, rows, strict=True)]
    saturated = [saturating_product(c, r) for c, r in zip(columns, rows, strict=True)]
    depthwise = inputs == outputs == groups
    results = [
        np.clip(np.rint(np.concatenate(sums, axis=1).T.reshape(found[0].shape) / scale) + 128, 0, 255)
        for sums in (saturated, exact)
    ]
    assert not np.array_equal(*results)
    np.testing.assert_array_equal(found[0], results[depthwise])
    assert find_kernels(model)[0].saturates is not depthwise


def test_convinteger_is_exact(tmp_path: Path) -> None:
    weight = np.full((4, 3, 3, 3), 127, dtype=np.int8)
    images = np.full((1, 3, 5, 5), 255, dtype=np.uint8)
    node = helper.make_node("ConvInteger", ["x", "w"], ["y"])
    model = operator(node, TensorProto.UINT8, TensorProto.INT32, {"w": weight})
    np.testing.assert_array_equal(without_vnni(model, images, tmp_path), np.full((1, 4, 3, 3), 27 * 127 * 255))
    assert not find_kernels(model)[0].saturates


@pytest.mark.parametrize("weight_type", [np.int8, np.uint8])
@pytest.mark.parametrize("activation_type", [np.uint8, np.int8])
@pytest.mark.parametrize("depth", [31, 64])
@pytest.mark.parametrize("rows", [1, 7])
def test_matrix_products_saturate_with_unsigned_activations_and_signed_weights_alone(
    rows: int, depth: int, activation_type: type, weight_type: type, tmp_path: Path
) -> None:
    random = np.random.default_rng(1)
    weight = random.integers(*((0, 256) if weight_type is np.uint8 else (-128, 128)), (depth, 17)).astype(weight_type)
    top = np.iinfo(activation_type).max
    values = random.integers(top - 50, top + 1, (rows, depth)).astype(activation_type)
    zero = {"z": np.zeros((), dtype=activation_type)}
    node = helper.make_node("MatMulInteger", ["x", "w", "z"], ["y"])
    kind = TensorProto.UINT8 if activation_type is np.uint8 else TensorProto.INT8
    model = operator(node, kind, TensorProto.INT32, {"w": weight, **zero})
    exact = values.astype(np.int64) @ weight.astype(np.int64)
    saturates = (activation_type, weight_type) == (np.uint8, np.int8)
    assert find_kernels(model)[0].saturates is saturates
    expected = saturating_product(values, weight.T) if saturates else exact
    np.testing.assert_array_equal(without_vnni(model, values, tmp_path), expected)
    assert np.array_equal(expected, exact) is not saturates


@pytest.mark.parametrize("name", SMALL)
def test_a_file_says_what_its_layers_say(name: str) -> None:
    """Layers are judged before there is a file, and again in the graph that onnxruntime makes of the file."""
    of = small(name)
    bits = of.uniform(8, 8)
    codes = layer_codes(of.quantizable, bits)
    model = qdq_model(of.quantizable, bits, codes, STORAGES["packed"], {})
    found = {kernel.layer for kernel in find_kernels(model) if kernel.saturates}
    assert found == saturating_layers(of.quantizable)
    assert found <= meeting_at_8_bits(of.quantizable, bits)
    codes = layer_codes(of.quantizable, bits, exact=meeting_at_8_bits(of.quantizable, bits))
    model = qdq_model(of.quantizable, bits, codes, STORAGES["packed"], {})
    assert not any(kernel.saturates for kernel in find_kernels(model))


@pytest.mark.parametrize("bits", [(7, 8), (8, 7), (8, 4)])
def test_7_bits_of_weights_or_activations_are_enough(bits: tuple[int, int]) -> None:
    of = small("residual")
    chosen = of.uniform(*bits)
    codes = layer_codes(of.quantizable, chosen)
    model = qdq_model(of.quantizable, chosen, codes, STORAGES["packed"], {})
    assert not any(kernel.saturates for kernel in find_kernels(model))


def test_depthwise_convolutions_keep_8_bits() -> None:
    of = small("depthwise")
    depthwise = [layer for layer in of.network.layers if not multiplies_in_pairs(of.graph, layer)]
    assert {layer.op_type for layer in depthwise} == {"Conv"}
    assert len(depthwise) < len(of.network.layers)


def saturating(b: Quantized, x: str, name: str, cin: int) -> str:
    """Convolve with weights of which every pair saturates."""
    weight = np.full((CHANNELS, cin, 3, 3), 127, dtype=np.int8)
    scales = np.full(CHANNELS, 0.001, dtype=np.float32)
    return b.op("Conv", [x, b.dequantized(f"{name}_w", weight, scales)], name, pads=[1] * 4)


def test_anybodys_file_is_judged_by_its_own_codes() -> None:
    b = Quantized()
    one = b.quantize(saturating(b, b.quantize("x", "in"), "one", 3), "between", largest=127)
    moved = b.op("MaxPool", [one], "pool", kernel_shape=[1, 1])
    two = b.quantize(saturating(b, moved, "two", CHANNELS), "again")
    three = b.quantize(b.integer_conv(two, "three", CHANNELS, group=CHANNELS), "third")
    model = b.finish(b.op("Tanh", [b.quantize(saturating(b, three, "four", CHANNELS), "out")], "end"))
    found = {kernel.layer: (kernel.integer, kernel.saturates) for kernel in find_kernels(model)}
    assert found == {
        "one": (True, True),
        # its activations have 7 bits
        "two": (True, False),
        # depthwise
        "three": (True, False),
        "four": (True, True),
    }


def test_a_processor_with_vnni_is_emulated_by_unsigned_weights(tmp_path: Path) -> None:
    b = Quantized()
    y = b.quantize(saturating(b, b.quantize("x", "in", scale=1 / 255), "one", 3), "out", scale=0.02)
    model = b.finish(b.op("Tanh", [b.op("Neg", [y], "neg")], "end"))
    before = model.SerializeToString()
    emulated = with_unsigned_weights(model)
    assert model.SerializeToString() == before
    assert not any(kernel.saturates for kernel in find_kernels(emulated))
    assert all(kernel.integer for kernel in find_kernels(emulated))
    images = np.ones((2, 3, 6, 6), dtype=np.float32)
    (wanted,) = run(model, {"x": images})
    (fused,) = open_session(emulated).run(None, {"x": images})
    np.testing.assert_allclose(fused, wanted, atol=1e-6)
    # and on a processor that would saturate
    np.testing.assert_allclose(without_vnni(emulated, images, tmp_path), wanted, atol=1e-6)
    assert np.abs(without_vnni(model, images, tmp_path) - wanted).max() > 0.1
