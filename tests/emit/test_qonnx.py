"""QONNX: the same network for FINN and Brevitas, executed by the qonnx package."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from infoq_onnx.emit.qonnx import qonnx_model, verify_qonnx
from infoq_onnx.errors import MissingDependencyError, VerificationError
from infoq_onnx.graph.load import QONNX_DOMAIN
from infoq_onnx.quantize.levels import SHIFTED_BITS
from infoq_onnx.schema import BITS, Bits
from infoq_onnx.simulate.simulation import layer_codes, simulation
from tests.prepared import Ready, dataset_of, images, is_one_line, small
from tests.simulate.rounded import rounded


def made(of: Ready, bits: Bits, *, fitted: bool = False) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The QONNX model and its simulation."""
    codes = rounded(of, bits) if fitted else layer_codes(of.quantizable, bits)
    simulated = simulation(of.quantizable, bits, codes=codes)
    return qonnx_model(simulated, of.network, codes, {"key": "value"}), simulated


@pytest.mark.parametrize("name", ["residual", "depthwise", "concat", "mlp", "fixed batch"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("fitted", [False, True])
def test_qonnx_computes_what_the_simulation_computes(name: str, seed: int, fitted: bool) -> None:
    of = small(name)
    model, simulated = made(of, of.mixed(seed), fitted=fitted)
    few = dataset_of(images(of.network.input_shape, 4, seed=3))
    found = verify_qonnx(model, of.graph, few, simulated, "model.onnx")
    assert found.images == 4
    assert found.relative_rms < 0.05


def test_every_quantizer_is_one_node_with_its_bits() -> None:
    of = small("residual")
    bits = of.mixed(seed=4)
    model, _ = made(of, bits)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(kinds)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quants = {node.output[0]: node for node in model.graph.node if node.op_type == "Quant"}
    for layer in of.network.layers:
        node = quants[f"{layer.weight}/quant"]
        assert int(constants[node.input[3]]) == bits[0][layer.name]
        assert {a.name: a.i for a in node.attribute if a.name != "rounding_mode"} == {
            "signed": 1,
            "narrow": int(bits[0][layer.name] == 8),
        }
    widths = Counter(int(constants[node.input[3]]) for node in quants.values() if not node.output[0].endswith("/quant"))
    assert set(bits[1].values()) - {8} <= set(widths)
    assert [entry.domain for entry in model.opset_import if entry.version == 1] == [QONNX_DOMAIN]


@pytest.mark.parametrize("bits", BITS)
def test_weights_are_on_the_grid_of_their_quantizer(bits: int) -> None:
    """What Quant computes of them, written out, is what they are."""
    of = small("residual")
    model, _ = made(of, of.uniform(bits, 8), fitted=True)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in (node for node in model.graph.node if node.output[0].endswith("/quant")):
        weight, scale, zero, width = (constants[name] for name in node.input)
        last = 2 ** int(width - 1) - 1
        fields = np.rint(np.clip(weight / scale + zero, -last - (bits < 8), last))
        np.testing.assert_allclose((fields - zero) * scale, weight, rtol=1e-6)
        assert np.any(zero) == (bits <= SHIFTED_BITS)


def test_another_network_is_noticed() -> None:
    of = small("mlp")
    model, _ = made(of, of.uniform(2, 8))
    _, other = made(of, of.uniform(8, 8))
    few = dataset_of(images(of.network.input_shape, 8, seed=3))
    with pytest.raises(VerificationError) as caught:
        verify_qonnx(model, of.graph, few, other, "model.onnx")
    assert is_one_line(caught.value, "model.onnx", "qonnx", "no file was left")


def test_without_the_package_nothing_is_written_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qonnx.core.modelwrapper", None)
    of = small("mlp")
    model, simulated = made(of, of.uniform(4, 8))
    with pytest.raises(MissingDependencyError) as caught:
        verify_qonnx(model, of.graph, of.dataset, simulated, "model.onnx")
    assert is_one_line(caught.value, "infoq-onnx[qonnx]")


def test_two_runs_give_the_same_bytes() -> None:
    of = small("depthwise")
    one, other = (made(of, of.mixed(seed=5))[0] for _ in range(2))
    assert one.SerializeToString() == other.SerializeToString()
