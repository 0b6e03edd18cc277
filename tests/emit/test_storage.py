"""Packed weights are the same int8 tensors once onnxruntime has loaded them, in exactly their bits."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from infoq_onnx.emit.qdq import qdq_model
from infoq_onnx.emit.storage import DOMAIN, STORAGES, Stored, int8, packed
from infoq_onnx.emit.storage.narrow import narrow
from infoq_onnx.emit.storage.packed import pack, plane_widths, unpack_function
from infoq_onnx.graph.ort import run, run_session
from infoq_onnx.graph.session import open_session
from infoq_onnx.quantize.codes import RoundedWeight
from infoq_onnx.quantize.grid import per_channel
from infoq_onnx.quantize.levels import SHIFTED_BITS
from infoq_onnx.schema import BITS
from infoq_onnx.simulate.simulation import layer_codes
from tests.networks import Builder
from tests.prepared import Ready, images, ready, small
from tests.simulate.rounded import Codes, rounded

from .optimized import operators

BELOW_8 = [bits for bits in BITS if bits < 8]
OPSETS = [13, 17, 18, 20, 21]


def held(codes: np.ndarray, bits: int, origins: np.ndarray | None = None) -> RoundedWeight:
    """A weight of these codes, whatever its scales."""
    return RoundedWeight(codes, np.ones(1, np.float32), bits, origins)


def codes_of(bits: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Draw codes from all that a bit-width has; the first and the last are always among the first ones."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    codes = np.random.default_rng(seed).integers(low, high + 1, shape).astype(np.int8)
    codes.reshape(-1)[: min(codes.size, 2)] = [low, high][: min(codes.size, 2)]
    return codes


def shifted(bits: int, *shape: int, axis: int = 0, seed: int = 0) -> RoundedWeight:
    """A weight as rounding leaves it where each channel has levels of its own: 2 apart, from its lowest one on."""
    random = np.random.default_rng(seed)
    count = 1 << bits
    lowest = random.integers(1 - 2 * count, 2, shape[axis])
    lowest[:2] = [1 - 2 * count, 1][: min(lowest.size, 2)]
    codes = per_channel(lowest, len(shape), axis) + 2 * random.integers(0, count, shape)
    return held(codes.astype(np.int8), bits, lowest.astype(np.int8))


def alone(stored: Stored, shape: tuple[int, ...], opset: int = 17) -> onnx.ModelProto:
    """A model that gives nothing but the stored tensor."""
    nodes = [node for node in (stored.node,) if node is not None]
    output = helper.make_tensor_value_info("y", TensorProto.INT8, shape)
    graph = helper.make_graph(
        [*nodes, helper.make_node("Identity", [stored.output], ["y"])], "stored", [], [output], stored.initializers
    )
    imports = [helper.make_opsetid("", opset)]
    functions = []
    if stored.function is not None:
        imports.append(helper.make_opsetid(DOMAIN, 1))
        functions.append(stored.function)
    version = max(8, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=version)
    onnx.checker.check_model(model, full_check=True)
    return model


def unpacked(planes: list[np.ndarray], bits: int, size: int) -> np.ndarray:
    """What the format says, one bit at a time: byte i of a plane holds the fields of the codes i, i + n, i + 2n …"""
    values = np.zeros(size, dtype=np.int64)
    for plane, width in zip(planes, plane_widths(bits), strict=True):
        values <<= width
        for index in range(size):
            row, byte = divmod(index, len(plane))
            values[index] += (int(plane[byte]) >> (row * width)) & ((1 << width) - 1)
    return (values - (1 << (bits - 1))).astype(np.int8)


@pytest.mark.parametrize("bits", BELOW_8)
def test_planes_are_whole_shares_of_a_byte(bits: int) -> None:
    widths = plane_widths(bits)
    assert sum(widths) == bits
    assert list(widths) == sorted(set(widths), reverse=True)
    assert set(widths) <= {1, 2, 4}


@settings(derandomize=True, deadline=None, max_examples=80)
@given(st.sampled_from(BELOW_8), st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(0, 99))
def test_what_was_packed_comes_back(bits: int, shape: list[int], seed: int) -> None:
    codes = codes_of(bits, *shape, seed=seed)
    planes = pack(codes, bits)
    assert all(plane.dtype == np.uint8 for plane in planes)
    np.testing.assert_array_equal(unpacked(planes, bits, codes.size), codes.ravel())
    stored = packed("w", held(codes, bits), 0, 17)
    found = run(alone(stored, codes.shape), {})[0]
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, codes)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.sampled_from([bits for bits in BITS if bits <= SHIFTED_BITS]),
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.integers(-4, 3),
    st.integers(0, 99),
)
def test_levels_of_channels_come_back(bits: int, shape: list[int], axis: int, seed: int) -> None:
    axis = axis % len(shape)
    weight = shifted(bits, *shape, axis=axis, seed=seed)
    codes, cut = weight.codes, narrow(weight, axis)
    assert -(1 << (bits - 1)) <= cut.fields.min() <= cut.fields.max() < 1 << (bits - 1)
    if cut.origins is not None:
        assert cut.origins.size == shape[axis]
        np.testing.assert_array_equal(2 * cut.fields.astype(int) + cut.origins, codes)
    for storage in STORAGES.values():
        opset = max(17, storage.opset([bits]))
        stored = storage.store("w", weight, axis, opset)
        found = run(alone(stored, codes.shape, opset), {})[0]
        assert found.dtype == np.int8
        np.testing.assert_array_equal(found, codes)


def test_codes_within_their_bits_need_no_origins() -> None:
    assert narrow(held(codes_of(3, 5, 4), 3), 0).origins is None
    assert narrow(held(np.zeros((0, 4), np.int8), 3), 0).origins is None


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit 3 bits"):
        narrow(held(np.array([[-5, 1, 3]], dtype=np.int8), 3), 0)


@pytest.mark.parametrize("codes", [[-5, 0, 1], [-5, 11, 1], [-7, 5, 1]], ids=["between", "above", "below"])
def test_codes_off_the_levels_of_their_channels_are_refused(codes: list[int]) -> None:
    with pytest.raises(ValueError, match="not on the levels"):
        narrow(held(np.array([codes], dtype=np.int8), 3, np.array([-5], dtype=np.int8)), 0)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("own_levels", [True, False])
def test_operator_sets(bits: int, opset: int, own_levels: bool) -> None:
    usual = held(codes_of(bits, 5, 3, 3), bits)
    weight = shifted(bits, 5, 3, 3) if own_levels and bits <= SHIFTED_BITS else usual
    codes = weight.codes
    model = alone(packed("w", weight, 0, opset), codes.shape, opset)
    for optimize in (True, False):
        np.testing.assert_array_equal(run_session(open_session(model, optimize=optimize), {})[0], codes)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 63, 64, 65, 1000])
@pytest.mark.parametrize("bits", BELOW_8)
def test_bytes_are_those_of_the_bits(bits: int, size: int) -> None:
    """Each plane is rounded up to whole bytes, and nothing is stored beside them."""
    stored = packed("w", held(codes_of(bits, size), bits), 0, 17)
    planes = stored.initializers
    assert [len(plane.raw_data) for plane in planes] == [math.ceil(size * width / 8) for width in plane_widths(bits)]
    assert stored.bytes == sum(math.ceil(size * width / 8) for width in plane_widths(bits))
    if size % 8 == 0:
        assert stored.bytes == size * bits // 8
    # raw data, not one varint for every byte
    assert all(not plane.int32_data for plane in planes)


@pytest.mark.parametrize("bits", BITS)
def test_a_byte_each(bits: int) -> None:
    codes = codes_of(bits, 4, 9)
    stored = int8("w", held(codes, bits), 0, 17)
    assert (stored.node, stored.function) == (None, None)
    assert stored.bytes == 36
    np.testing.assert_array_equal(numpy_helper.to_array(stored.initializers[0]), codes)
    np.testing.assert_array_equal(run(alone(stored, (4, 9)), {})[0], codes)


def test_8_bits_need_no_packing() -> None:
    codes = codes_of(8, 4, 9)
    assert packed("w", held(codes, 8), 0, 17) == int8("w", held(codes, 8), 0, 17)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("bits", BITS)
def test_names_start_with_that_of_the_weight(storage: str, bits: int) -> None:
    stored = STORAGES[storage].store("conv1.weight", held(codes_of(bits, 3, 3), bits), 0, 17)
    names = [stored.output, *(tensor.name for tensor in stored.initializers)]
    if stored.node is not None:
        names += [stored.node.name, *stored.node.input, *stored.node.output]
    assert all(name.startswith("conv1.weight/") for name in names)


def test_codes_need_not_be_contiguous() -> None:
    codes = codes_of(3, 6, 4).T
    for storage in STORAGES.values():
        np.testing.assert_array_equal(run(alone(storage.store("w", held(codes, 3), 0, 21), (4, 6), 21), {})[0], codes)


@pytest.mark.parametrize("bits", BELOW_8)
def test_a_function_is_the_same_for_all_weights_of_a_width(bits: int) -> None:
    weights = {"a": held(codes_of(bits, 3), bits), "b": held(codes_of(bits, 50), bits)}
    one, other = (packed(name, weight, 0, 17).function for name, weight in weights.items())
    assert one == other == unpack_function(bits, 17)
    assert one is not None
    assert (one.domain, one.name) == (DOMAIN, f"Unpack{bits}")
    if bits <= SHIFTED_BITS:
        others = [packed(name, shifted(bits, 9, 9), 0, 17).function for name in ("a", "b")]
        assert others[0] == others[1] == unpack_function(bits, 17, shifted=True)
        assert unpack_function(bits, 17, shifted=True).name == f"Unpack{bits}Shifted"


# ------------------------------------------------------------------------------------------------------------ in models


def network(opset: int) -> onnx.ModelProto:
    b = Builder()
    stem = b.relu(b.conv("x", "stem", 3, 7), "stem_relu")
    branch = b.conv(b.relu(b.conv(stem, "one", 7, 7, group=7), "relu"), "two", 7, 7, kernel=1)
    y = b.relu(b.op("Add", [branch, stem], "add"), "add_relu")
    return b.model(b.classifier(y, 7, 5), (3, 8, 8), (5,), opset=opset)


def emitted(of: Ready, storage: str, seed: int, codes: Codes | None = None) -> onnx.ModelProto:
    bits = of.mixed(seed)
    if codes is None:
        codes = layer_codes(of.quantizable, bits)
    model = qdq_model(of.quantizable, bits, codes, STORAGES[storage], {})
    onnx.checker.check_model(model, full_check=True)
    return model


def assert_same(of: Ready, plain: onnx.ModelProto, other: onnx.ModelProto) -> None:
    feeds = {of.graph.input: images(of.network.input_shape, of.graph.batch or 16, seed=5)}
    for optimize in (True, False):
        one, two = (run_session(open_session(model, optimize=optimize), feeds)[0] for model in (plain, other))
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("opset", OPSETS)
def test_models_of_any_operator_set(opset: int, tmp_path: Path) -> None:
    of = ready(network(opset), images((3, 8, 8), 16))
    for seed in range(2):
        plain, other = emitted(of, "int8", seed), emitted(of, "packed", seed)
        assert other.functions
        assert {entry.domain: entry.version for entry in other.opset_import} == {"": opset, DOMAIN: 1}
        assert_same(of, plain, other)
        found = operators(other, tmp_path)
        assert found == operators(plain, tmp_path)
        assert found["QLinearConv"] == 3
        assert found["BitShift"] == 0


def test_a_file_from_before_local_functions(tmp_path: Path) -> None:
    """IR version 7, as exporters write it with operator set 13, knows none."""
    source = network(13)
    source.ir_version = 7
    of = ready(source, images((3, 8, 8), 16))
    assert_same(of, emitted(of, "int8", 0), emitted(of, "packed", 0))
    assert operators(emitted(of, "packed", 0), tmp_path)["QLinearConv"] == 3


@pytest.mark.parametrize("name", ["residual", "depthwise", "concat", "attention", "mlp", "batchnorm", "fixed batch"])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_storages_compute_the_same(name: str, rounding: str, tmp_path: Path) -> None:
    of = small(name)
    codes = rounded(of, of.mixed(4)) if rounding == "gptq" else None
    plain, other = emitted(of, "int8", 4, codes), emitted(of, "packed", 4, codes)
    # at 2 to 5 bits all of these have channels whose levels are not the usual ones, but for two without so few bits
    shifted = codes is not None and name not in ("mlp", "batchnorm")
    assert any(function.name.endswith("Shifted") for function in other.functions) == shifted
    assert_same(of, plain, other)
    found = operators(other, tmp_path)
    assert found == operators(plain, tmp_path)
    assert {"BitShift", *(function.name for function in other.functions)}.isdisjoint(found)
    assert_same(of, plain, emitted(of, "native", 4, codes))


def test_each_width_has_one_function() -> None:
    of = small("residual")
    bits = of.uniform(3, 8)
    bits[0]["stem"], bits[0]["fc"] = 8, 5
    codes = layer_codes(of.quantizable, bits)
    model = qdq_model(of.quantizable, bits, codes, STORAGES["packed"], {})
    assert [function.name for function in model.functions] == ["Unpack3", "Unpack5"]
    assert sum(node.domain == DOMAIN for node in model.graph.node) == len(of.network.layers) - 1
    stored = {tensor.name: len(tensor.raw_data) for tensor in model.graph.initializer}
    for layer in of.network.layers:
        size = sum(length for name, length in stored.items() if name.startswith(f"{layer.weight}/plane_"))
        if layer.name != "stem":
            assert size == sum(math.ceil(layer.parameters * width / 8) for width in plane_widths(bits[0][layer.name]))
    assert stored["stem_w/codes"] == 8 * 27
