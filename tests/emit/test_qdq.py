"""The emitted model computes what the simulation computes, with integer kernels and without."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from infoq_onnx.emit.qdq import qdq_model
from infoq_onnx.emit.saturation import with_unsigned_weights
from infoq_onnx.emit.storage import STORAGES
from infoq_onnx.emit.targets import lacks_vnni
from infoq_onnx.graph.session import open_session
from infoq_onnx.quantize.grid import clips_alike, quantize_activation
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.schema import BITS, Bits, Quantizer
from infoq_onnx.simulate.running.batching import batch_size, logits_of
from infoq_onnx.simulate.simulation import layer_codes, simulation
from tests.networks import SMALL, Builder, auxiliary_net
from tests.prepared import Ready, ready, small, spread_of

from .optimized import operators

Logits = npt.NDArray[np.float32]
CONVOLUTIONAL = {"residual": 6, "depthwise": 5, "concat": 5, "batchnorm": 3, "fixed batch": 6}
"""Networks with the number of their Conv layers, classifiers that become a Gemm not counted."""
CASES = ["8/8", "4/4", "2/2", "8/2", "2/8", "mixed 0", "mixed 1", "mixed 2"]


def bits_of(of: Ready, case: str) -> Bits:
    if case.startswith("mixed"):
        return of.mixed(seed=int(case[-1]))
    return of.uniform(int(case[0]), int(case[-1]))


def emitted(of: Ready, bits: Bits, storage: str = "packed") -> onnx.ModelProto:
    codes = layer_codes(of.quantizable, bits)
    model = qdq_model(of.quantizable, bits, codes, STORAGES[storage], {"key": "value"})
    onnx.checker.check_model(model, full_check=True)
    return model


def simulated(of: Ready, bits: Bits) -> Logits:
    model = simulation(of.quantizable, bits)
    return logits_of(open_session(model, integer_kernels=False), of.graph, of.dataset, batch_size(of.graph))


def computed(of: Ready, model: onnx.ModelProto, *, optimize: bool) -> Logits:
    return logits_of(open_session(model, optimize=optimize), of.graph, of.dataset, batch_size(of.graph))


def assert_alike(of: Ready, bits: Bits, model: onnx.ModelProto) -> None:
    """What differs may be single codes that lie on a boundary."""
    expected = simulated(of, bits)
    # nothing here was chosen not to saturate
    model = with_unsigned_weights(model) if lacks_vnni() else model
    for optimize in (True, False):
        found = computed(of, model, optimize=optimize)
        assert spread_of(found - expected, expected) < 5e-3
        assert np.mean(found.argmax(axis=1) == expected.argmax(axis=1)) >= 0.97


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("case", CASES)
def test_computes_what_the_simulation_computes(name: str, case: str) -> None:
    of = small(name)
    bits = bits_of(of, case)
    assert_alike(of, bits, emitted(of, bits))


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize("case", ["8/8", "4/4", "2/2", "mixed 0"])
def test_every_convolution_is_an_integer_kernel(name: str, case: str, tmp_path: Path) -> None:
    of = small(name)
    found = operators(emitted(of, bits_of(of, case)), tmp_path)
    assert (found["QLinearConv"], found["Conv"] + found["FusedConv"]) == (CONVOLUTIONAL[name], 0)
    assert found["QGemm"] == sum(layer.op_type == "Gemm" for layer in of.network.layers)
    assert {"Add", "Concat", "GlobalAveragePool", "Relu"}.isdisjoint(found)


@pytest.mark.parametrize("case", ["8/8", "4/4"])
def test_matrix_products_are_integer_kernels(case: str, tmp_path: Path) -> None:
    of = small("attention")
    found = operators(emitted(of, bits_of(of, case)), tmp_path)
    assert found["MatMul"] == found["Gemm"] == found["Conv"] == 0
    # the patch embedding among them
    assert found["MatMulIntegerToFloat"] + found["QLinearMatMul"] == 9


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", ["residual", "attention", "batchnorm"])
def test_storages_compute_the_same(name: str, storage: str) -> None:
    of = small(name)
    bits = of.mixed(seed=4)
    plain, other = (computed(of, emitted(of, bits, kind), optimize=True) for kind in ("int8", storage))
    np.testing.assert_array_equal(plain, other)


# --------------------------------------------------------------------------------------------------------- odd networks


def with_output(model: onnx.ModelProto, name: str, *shape: int) -> onnx.ModelProto:
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]))
    return model


def gated() -> onnx.ModelProto:
    """Swish, squeeze and excitation, HardSwish, AveragePool, LeakyRelu."""
    b = Builder()
    y = b.conv("x", "one", 3, 8)
    y = b.conv(b.op("Mul", [y, b.op("Sigmoid", [y], "gate")], "swish"), "two", 8, 8)
    squeezed = b.relu(b.conv(b.op("GlobalAveragePool", [y], "squeeze"), "down", 8, 4, kernel=1), "down_relu")
    y = b.op("Mul", [y, b.op("Sigmoid", [b.conv(squeezed, "up", 4, 8, kernel=1)], "weights")], "excite")
    y = b.conv(b.op("HardSwish", [y], "hard"), "three", 8, 8)
    y = b.op("AveragePool", [y], "mean", kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 1, 1])
    return b.model(b.classifier(b.op("LeakyRelu", [b.conv(y, "four", 8, 8)], "leaky"), 8, 10), (3, 8, 8), (10,))


def constant_on_the_left() -> onnx.ModelProto:
    b = Builder()
    rows = b.op("Reshape", [b.relu(b.conv("x", "one", 3, 8), "act"), b.constant("rows", [0, 8, 64], np.int64)], "flat")
    mixed = b.op("Tanh", [b.op("MatMul", [b.normal("left_w", 6, 8, fan_in=8), rows], "left")], "tanh")
    mean = b.op("ReduceMean", [mixed], "mean", axes=[2], keepdims=0)
    return b.model(b.gemm(mean, "fc", 6, 10), (3, 8, 8), (10,))


def split_in_float() -> onnx.ModelProto:
    b = Builder()
    act = b.op("HardSwish", [b.conv("x", "one", 3, 8)], "act")
    b.op("Split", [act], "split", outputs=["left", "right"], axis=1)
    joined = b.op("Concat", ["left", b.relu(b.conv("right", "two", 4, 4), "two_relu")], "join", axis=1)
    return b.model(b.classifier(joined, 8, 10), (3, 8, 8), (10,))


def tokens_first() -> onnx.ModelProto:
    b = Builder()
    patches = b.op("Conv", ["x", b.normal("w", 8, 3, 2, 2, fan_in=12)], "patch", strides=[2, 2])
    rows = b.op("Reshape", [patches, b.constant("rows", [0, 8, 16], np.int64)], "rows_of")
    hidden = b.op("Tanh", [b.linear(b.op("Transpose", [rows], "tokens", perm=[2, 0, 1]), "one", 8, 8)], "act")
    mean = b.op("ReduceMean", [b.linear(hidden, "two", 8, 8)], "mean", axes=[0], keepdims=0)
    return b.model(b.gemm(mean, "fc", 8, 10), (3, 8, 8), (10,))


def two_convolutions() -> onnx.ModelProto:
    b = Builder()
    y = b.relu(b.conv("x", "one", 3, 8), "relu1")
    return b.model(b.classifier(b.relu(b.conv(y, "two", 8, 8), "relu2"), 8, 10), (3, 8, 8), (10,))


def bias_of_the_batch() -> onnx.ModelProto:
    """A Gemm that adds another row to every image of its fixed batch, which no integer kernel does."""
    b = Builder()
    y = b.op("Gemm", ["x", b.normal("w1", 16, 12, fan_in=12), b.normal("rows", 2, 16)], "fc1", transB=1)
    return b.model(b.gemm(b.relu(y, "relu"), "fc2", 16, 4), (12,), (4,), batch=2)


def one_in_a_reshape() -> onnx.ModelProto:
    b = Builder()
    pooled = b.op("GlobalAveragePool", [b.relu(b.conv("x", "one", 3, 8), "relu1")], "gap")
    y = b.gemm(b.op("Reshape", [pooled, b.constant("shape", [1, 8], np.int64)], "flat"), "fc", 8, 10)
    return b.model(y, (3, 8, 8), (10,))


def where_the_largest_are() -> onnx.ModelProto:
    b = Builder()
    y = b.relu(b.conv("x", "one", 3, 8), "relu1")
    y = b.op("MaxPool", [y], "pool", outputs=["pooled", "where"], kernel_shape=[2, 2], strides=[2, 2])
    number = b.op("Cast", [b.op("ReduceMax", ["where"], "last", keepdims=0)], "number", to=TensorProto.FLOAT)
    y = b.op("Div", [b.conv(y, "two", 8, 8), b.op("Sqrt", [number], "root")], "ratio")
    return b.model(b.classifier(y, 8, 10), (3, 8, 8), (10,))


def clipped_twice() -> onnx.ModelProto:
    """A Relu behind a Relu, and a Clip behind a Relu: each pair has a quantizer between and one behind."""
    b = Builder()
    y = b.relu(b.relu(b.conv("x", "one", 3, 8), "relu1"), "relu2")
    y = b.relu6(b.relu(b.conv(y, "two", 8, 8), "relu3"), "clip4")
    return b.model(b.classifier(y, 8, 10), (3, 8, 8), (10,))


ODD: dict[str, Callable[[], onnx.ModelProto]] = {
    function.__name__: function
    for function in (
        gated,
        constant_on_the_left,
        split_in_float,
        tokens_first,
        bias_of_the_batch,
        one_in_a_reshape,
        where_the_largest_are,
        auxiliary_net,
        clipped_twice,
    )
} | {
    "features as an output": lambda: with_output(two_convolutions(), "flatten_out", 8),
    "an inner activation as an output": lambda: with_output(two_convolutions(), "relu1_out", 8, 8, 8),
    "the last activation as an output": lambda: with_output(two_convolutions(), "relu2_out", 8, 8, 8),
    "an inner convolution as an output": lambda: with_output(two_convolutions(), "one_out", 8, 8, 8),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_networks(name: str) -> None:
    of = ready(ODD[name](), bits=(2, 4))
    for case in ("8/8", "4/4", "2/2"):
        bits = bits_of(of, case)
        model = emitted(of, bits)
        assert_alike(of, bits, model)
        assert [value.name for value in model.graph.output] == list(of.graph.outputs)


def test_a_head_beside_the_first_output_stays_in_float(tmp_path: Path) -> None:
    of = ready(auxiliary_net(), bits=(4,))
    model = emitted(of, of.uniform(4, 4))
    for initializer in (name for name in of.graph.initializers if name.startswith("aux")):
        assert initializer in {tensor.name for tensor in model.graph.initializer}
    assert not [node.name for node in model.graph.node if node.name.startswith("aux") and "/" in node.name]
    found = operators(model, tmp_path)
    assert (found["QLinearConv"], found["Conv"] + found["FusedConv"], found["QGemm"], found["Gemm"]) == (2, 1, 1, 1)


# ------------------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("name", SMALL)
def test_weights_and_biases_are_integers_or_on_their_grid(name: str) -> None:
    of = small(name)
    codes = layer_codes(of.quantizable, of.uniform(4, 4))
    stored = {tensor.name: tensor for tensor in emitted(of, of.uniform(4, 4), "int8").graph.initializer}
    for layer in of.network.layers:
        if layer.weight is None:
            continue
        assert layer.weight not in stored
        held = codes[layer.name]
        np.testing.assert_array_equal(numpy_helper.to_array(stored[f"{layer.weight}/codes"]), held.weight)
        assert stored[f"{layer.weight}/codes"].data_type == TensorProto.INT8
        # not one varint for every code
        assert len(stored[f"{layer.weight}/codes"].raw_data) == held.weight.size
        if held.bias is not None and layer.op_type != "Gemm":
            # onnxruntime makes the codes of these values
            name = f"{layer.bias}/row" if layer.op_type == "MatMul" else str(layer.bias)
            np.testing.assert_array_equal(numpy_helper.to_array(stored[name]).ravel(), held.bias_values())
        elif held.bias is not None:
            assert layer.bias not in stored
            assert stored[f"{layer.bias}/codes"].data_type == TensorProto.INT32


@pytest.mark.parametrize("name", SMALL)
def test_interface_and_metadata(name: str) -> None:
    of = small(name)
    model, source = emitted(of, of.mixed(seed=0)), of.graph.model
    assert list(model.graph.input) == list(source.graph.input)
    assert list(model.graph.output) == list(source.graph.output)
    assert [entry.version for entry in model.opset_import if not entry.domain] == [of.network.opset]
    assert model.ir_version == source.ir_version
    assert model.producer_name == "infoq-onnx"
    assert {entry.key: entry.value for entry in model.metadata_props} == {"key": "value"}
    names = [node.name for node in model.graph.node if node.name]
    assert len(set(names)) == len(names)


def test_metadata_of_the_float_model_is_kept() -> None:
    source = SMALL["mlp"]()
    helper.set_model_props(source, {"author": "somebody", "key": "of the float model"})
    of = ready(source, bits=(4,))
    found = {entry.key: entry.value for entry in emitted(of, of.uniform(4, 4)).metadata_props}
    assert found == {"author": "somebody", "key": "value"}


def test_the_same_allocation_is_the_same_bytes() -> None:
    of = small("residual")
    one, other = (emitted(of, of.mixed(seed=0)).SerializeToString(deterministic=True) for _ in range(2))
    assert one == other


# ------------------------------------------------------------------------------------------------ Relu and Clip dropped


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    st.sampled_from(BITS),
    st.floats(2**-10, 4, width=32),
    st.booleans(),
    st.floats(2**-10, 64, width=32) | st.just(float("inf")),
    st.sampled_from([0.0, -1.0, 0.5]),
)
def test_a_clip_is_redundant_exactly_where_it_changes_no_code(
    bits: int, scale: float, shifted: bool, high: float, low: float
) -> None:
    quantizer = Quantizer(bits, scale, int(shifted))
    last = (1 << bits) - 1
    finite = min(high, 3 * last * scale)
    values = np.concatenate([np.linspace(-2, 2 * last, 997) * scale, [finite, -finite, low, 1e3]]).astype(np.float32)
    clipped = np.clip(values, np.float32(low), np.float32(high))
    same = np.array_equal(quantize_activation(values, quantizer), quantize_activation(clipped, quantizer))
    if clips_alike(quantizer, low, high):
        assert same
    elif low == 0.0:
        assert not same


def test_relu_is_dropped_where_the_grid_starts_at_0_and_kept_elsewhere() -> None:
    of = small("residual")
    kept = {node.op_type for node in emitted(of, of.uniform(8, 4)).graph.node}
    assert "Relu" not in kept
    # a grid that reaches below 0 would let negative values through
    grids = {tensor: dict(by_bits) for tensor, by_bits in of.table.activations.items()}
    grids["a1_relu_out"][4] = dataclasses.replace(grids["a1_relu_out"][4], zero_point=2)
    shifted = dataclasses.replace(of, table=GridTable(grids, of.table.weights))
    model = emitted(shifted, of.uniform(8, 4))
    assert [node.name for node in model.graph.node if node.op_type == "Relu"] == ["a1_relu"]
    assert_alike(shifted, of.uniform(8, 4), model)


def test_clip_is_dropped_where_the_grid_ends_before_it_and_kept_elsewhere() -> None:
    of = small("depthwise")
    grids = {tensor: dict(by_bits) for tensor, by_bits in of.table.activations.items()}
    for tensor, largest in (("dw1_relu6_out", 6.0), ("dw2_relu6_out", 12.0)):
        grids[tensor][4] = Quantizer(4, float(np.float32(largest / 15)), 0)
    changed = dataclasses.replace(of, table=GridTable(grids, of.table.weights))
    model = emitted(changed, of.uniform(8, 4))
    standing = {node.name for node in model.graph.node if node.op_type == "Clip" and "/" not in node.name}
    assert "dw1_relu6" not in standing
    assert "dw2_relu6" in standing
    assert_alike(changed, of.uniform(8, 4), model)
