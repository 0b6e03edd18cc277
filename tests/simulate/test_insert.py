"""Inserted quantizers compute what `quantize.grid` says, and stand between every tensor and its readers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from infoq_onnx.graph.editing import expose
from infoq_onnx.graph.ort import run
from infoq_onnx.quantize.grid import dequantize_activation, quantize_activation
from infoq_onnx.schema import Bits
from infoq_onnx.simulate.quantizers.calibrate import quantizers_of
from infoq_onnx.simulate.quantizers.insert import Quantizers, group_names, insert_quantizers, quantize_group
from tests.networks import SMALL
from tests.prepared import Ready, images, small


def inserted(of: Ready, bits: Bits) -> tuple[onnx.ModelProto, Quantizers]:
    """Quantizers on activations; weights stay in float."""
    quantizers = quantizers_of(of.table, of.placement, bits[1])
    model = insert_quantizers(of.graph, of.network, of.placement, quantizers)
    onnx.checker.check_model(model, full_check=True)
    return model, quantizers


def values_of(model: onnx.ModelProto, of: Ready) -> dict[str, npt.NDArray[np.float32]]:
    """Every tensor of the model for a few images."""
    feeds = {of.graph.input: images(of.network.input_shape, of.graph.batch or 4)}
    shown = expose(model, [output for node in model.graph.node for output in node.output])
    names = [value.name for value in shown.graph.output]
    return {**feeds, **dict(zip(names, run(shown, feeds, names), strict=True))}


def sources(model: onnx.ModelProto) -> dict[str, str]:
    """What each DequantizeLinear's output is the quantized form of."""
    writer = {output: node for node in model.graph.node for output in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            behind = writer[node.input[0]]
            behind = writer[behind.input[0]] if behind.op_type == "Clip" else behind
            assert behind.op_type == "QuantizeLinear"
            assert list(behind.input[1:]) == list(node.input[1:])
            found[node.output[0]] = behind.input[0]
    return found


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("seed", [3, 4])
def test_every_quantizer_computes_its_grid(name: str, seed: int) -> None:
    of = small(name)
    model, quantizers = inserted(of, of.mixed(seed))
    values = values_of(model, of)
    for end, start in sources(model).items():
        tensor, kind, _ = end.rsplit("/", 2)
        quantizer = quantizers.groups[tensor] if kind == "group" else quantizers.storage[of.placement.root(tensor)]
        expected = dequantize_activation(quantize_activation(values[start], quantizer), quantizer)
        np.testing.assert_array_equal(values[end], expected)


@pytest.mark.parametrize("name", SMALL)
def test_every_reader_of_a_quantized_tensor_reads_it_quantized(name: str) -> None:
    of = small(name)
    model, quantizers = inserted(of, of.uniform(8, 4))
    quantized = {*of.placement.storage, *of.placement.inherited}
    layers = {layer.name: layer for layer in of.network.layers}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "Clip", "DequantizeLinear") and "/" in node.name:
            continue
        assert quantized.isdisjoint(node.input)
        if node.name in layers:
            for group in layers[node.name].groups:
                assert f"{group}/group/values" in node.input
    assert set(quantizers.groups) == {group.name for group in of.network.groups}


def test_a_clip_stands_below_8_bits_only() -> None:
    of = small("residual")
    assert not any(node.op_type == "Clip" for node in inserted(of, of.uniform(8, 8))[0].graph.node)
    clips = [node for node in inserted(of, of.uniform(8, 4))[0].graph.node if node.op_type == "Clip"]
    assert {node.name for node in clips} == {f"{group.name}/group/clipped" for group in of.network.groups}


def test_a_shortcut_keeps_8_bits_where_the_layers_see_fewer() -> None:
    of = small("residual")
    model, _ = inserted(of, of.uniform(8, 2))
    nodes = {node.name: node for node in model.graph.node}
    assert nodes["a1"].input[0] == "stem_relu_out/group/values"
    assert "stem_relu_out/storage/values" in nodes["a_add"].input
    # the low-bit form is made of the stored one, as the integer model has nothing else
    assert nodes["stem_relu_out/group/codes"].input[0] == "stem_relu_out/storage/values"


@pytest.mark.parametrize("name", ["residual", "attention", "mlp"])
def test_one_group_alone_with_a_grid_that_is_fed(name: str) -> None:
    """Its layers see the tensor on the grid, its other readers see the tensor itself."""
    of = small(name)
    plain = values_of(of.graph.model, of)
    for group in of.network.groups:
        grid = of.table.activations[group.name][3]
        model = onnx.ModelProto()
        model.CopyFrom(of.graph.model)
        quantize_group(model, of.network, group.name)
        onnx.checker.check_model(model, full_check=True)
        names = group_names(group.name)
        feeds = {
            of.graph.input: plain[of.graph.input],
            names.scale: np.array(grid.scale, np.float32),
            names.zero_point: np.array(grid.zero_point, np.uint8),
            names.largest: np.array(7, np.uint8),
        }
        end = f"{group.name}/group/values"
        (found,) = run(expose(model, [end]), feeds, [end])
        expected = dequantize_activation(quantize_activation(plain[group.name], grid), grid)
        np.testing.assert_array_equal(found, expected)
        for node in model.graph.node:
            if node.name in group.layers:
                assert end in node.input
                assert group.name not in node.input
            elif node.name != f"{group.name}/group/codes":
                assert end not in node.input


def test_the_float_graph_is_not_changed() -> None:
    of = small("residual")
    before = of.graph.model.SerializeToString(deterministic=True)
    inserted(of, of.uniform(4, 4))
    assert of.graph.model.SerializeToString(deterministic=True) == before
