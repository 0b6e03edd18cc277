"""A rerun of the part behind a unit equals a run of the whole network with the change built in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from infoq_onnx.graph.editing import expose, set_initializers
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.ort import run
from infoq_onnx.quantize.grid import dequantize_activation, quantize_activation
from infoq_onnx.schema import Network, Quantizer
from infoq_onnx.simulate.quantizers.insert import group_names
from infoq_onnx.simulate.running.batching import padded
from infoq_onnx.simulate.running.suffix import Suffix, Variant
from tests.networks import mlp
from tests.prepared import Ready, images, searched, small

Logits = npt.NDArray[np.float32]


def suffix_on(
    graph: Graph, network: Network, unit: str, outputs: list[str], initializers: list[str], batch: Logits
) -> Callable[[Sequence[Variant]], list[list[Logits]]]:
    """Suffix what lies behind a unit, with what the whole network holds in front of it."""
    suffix = Suffix(graph, network, unit, outputs, initializers)
    inner = [tensor for tensor in suffix.kept if tensor != graph.input]
    feeds = {graph.input: padded(batch, graph.batch)}
    kept = {**feeds, **dict(zip(inner, run(expose(graph.model, inner), feeds, inner) if inner else [], strict=True))}
    shortened = {name: kept[name][: len(batch)] if name in graph.batched else kept[name] for name in suffix.kept}
    return lambda variants: suffix.run(len(batch), shortened, variants)


def copy_of(of: Ready) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(of.graph.model)
    return model


def with_constants(of: Ready, values: Variant, batch: Logits) -> Logits:
    model = copy_of(of)
    set_initializers(model, values)
    logits: Logits = run(model, {of.graph.input: batch})[0]
    return logits


def with_grid(of: Ready, group: str, grid: Quantizer, batch: Logits) -> Logits:
    """Quantize the group's tensor in numpy, and let its layers read that from a further input."""
    values = (
        batch if group == of.graph.input else run(expose(of.graph.model, [group]), {of.graph.input: batch}, [group])[0]
    )
    model = copy_of(of)
    model.graph.input.append(helper.make_tensor_value_info("seen", TensorProto.FLOAT, values.shape))
    readers = {layer.name for layer in of.network.layers if group in layer.groups}
    for node in model.graph.node:
        if node.name in readers:
            node.input[:] = ["seen" if tensor == group else tensor for tensor in node.input]
    seen = dequantize_activation(quantize_activation(values, grid), grid)
    logits: Logits = run(model, {of.graph.input: batch, "seen": seen})[0]
    return logits


def fed(group: str, grid: Quantizer) -> Variant:
    names = group_names(group)
    return {
        names.scale: np.array(grid.scale, np.float32),
        names.zero_point: np.array(grid.zero_point, np.uint8),
        names.largest: np.array(2**grid.bits - 1, np.uint8),
    }


@pytest.mark.parametrize("name", ["residual", "depthwise", "attention", "fixed batch"])
def test_other_weights(name: str) -> None:
    of = small(name)
    batch = images(of.network.input_shape, of.graph.batch or 5, seed=9)
    for layer in of.network.layers:
        if layer.weight is None:
            continue
        weight = of.graph.constant(layer.weight)
        halved = weight * np.float32(0.5)
        suffix = suffix_on(of.graph, of.network, layer.weight, [of.graph.output], [layer.weight], batch)
        (changed,), (unchanged,) = suffix([{layer.weight: halved}, {layer.weight: weight}])
        np.testing.assert_allclose(changed, with_constants(of, {layer.weight: halved}, batch), atol=2e-5)
        np.testing.assert_allclose(unchanged, with_constants(of, {layer.weight: weight}, batch), atol=2e-5)
        assert np.abs(changed - unchanged).max() > 1e-3


@pytest.mark.parametrize("name", ["residual", "depthwise", "batchnorm", "fixed batch"])
def test_other_weights_and_biases(name: str) -> None:
    of = small(name)
    batch = images(of.network.input_shape, of.graph.batch or 5, seed=9)
    for layer in of.network.layers:
        assert layer.weight is not None
        assert layer.bias is not None
        weight, bias = of.graph.constant(layer.weight), of.graph.constant(layer.bias)
        variants = [
            {layer.weight: weight * np.float32(factor), layer.bias: bias + np.float32(factor)} for factor in (0.5, 1)
        ]
        suffix = suffix_on(of.graph, of.network, layer.weight, [of.graph.output], list(variants[0]), batch)
        for (found,), variant in zip(suffix(variants), variants, strict=True):
            np.testing.assert_allclose(found, with_constants(of, variant, batch), atol=1e-4)


@pytest.mark.parametrize("name", ["residual", "depthwise", "attention", "fixed batch"])
def test_other_grids(name: str) -> None:
    of = small(name)
    batch = images(of.network.input_shape, of.graph.batch or 5, seed=9)
    for group in of.network.groups:
        grids = [of.table.activations[group.name][bits] for bits in (2, 5, 8)]
        suffix = suffix_on(of.graph, of.network, group.name, [of.graph.output], [], batch)
        found = suffix([fed(group.name, grid) for grid in grids])
        for (logits,), grid in zip(found, grids, strict=True):
            np.testing.assert_allclose(logits, with_grid(of, group.name, grid, batch), atol=2e-5)
        assert np.abs(found[0][0] - found[-1][0]).max() > 1e-3


def test_several_outputs_in_their_order() -> None:
    of = small("residual")
    batch = images((3, 16, 16), 2)
    weight = of.graph.constant("b1_w")
    outputs = [of.graph.output, "b1_relu_out", "flatten_out"]
    ((logits, inner, pooled),) = suffix_on(of.graph, of.network, "b1_w", outputs, ["b1_w"], batch)([{"b1_w": weight}])
    assert (logits.shape, inner.shape, pooled.shape) == ((2, 10), (2, 16, 8, 8), (2, 16))


@pytest.mark.parametrize(("unit", "variant"), [("fc2_w", None), ("x", 2), ("relu1_out", 2)])
def test_a_short_batch_of_a_fixed_one(unit: str, variant: int | None) -> None:
    graph, network, _ = searched(mlp(batch=4))
    batch = images((12,), 3)
    grids = small("mlp").table.activations
    feeds = {unit: graph.constant(unit)} if variant is None else fed(unit, grids[unit][variant])
    initializers = [unit] if variant is None else []
    ((short,),) = suffix_on(graph, network, unit, [graph.output], initializers, batch)([feeds])
    ((full,),) = suffix_on(graph, network, unit, [graph.output], initializers, padded(batch, 4))([feeds])
    assert short.shape == (3, 4)
    np.testing.assert_array_equal(short, full[:3])
