"""Ranges are those of the float network's tensors, over every image once."""

from __future__ import annotations

import numpy as np
import pytest

from infoq_onnx.graph.editing import expose
from infoq_onnx.graph.ort import run
from infoq_onnx.quantize.ranges import BINS, Histogram
from infoq_onnx.quantize.ranges.mse import mse
from infoq_onnx.quantize.weight_scales import weight_scales
from infoq_onnx.schema import BITS
from infoq_onnx.simulate.quantizers.calibrate import calibrate, observe, quantizers_of
from infoq_onnx.simulate.running import batching
from tests.networks import SMALL, Builder, residual_convnet
from tests.prepared import Ready, dataset_of, images, ready, searched, small


def everything(of: Ready) -> dict[str, np.ndarray]:
    """Every tensor for every image at once."""
    x = np.concatenate(list(of.dataset.batches(64)))
    names = [tensor for node in of.graph.nodes for tensor in node.output]
    values = run(expose(of.graph.model, names), {of.graph.input: x}, names)
    return {of.graph.input: x, **dict(zip(names, values, strict=True))}


@pytest.mark.parametrize("name", ["residual", "concat", "attention"])
def test_histograms_are_those_of_all_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of = small(name)
    # batches of 7: the last one of 48 images is short
    monkeypatch.setattr(batching, "_LARGEST_BATCH", 7)
    tensors = list(dict.fromkeys([*of.placement.storage, *of.table.activations]))
    done: list[int] = []
    found = observe(of.graph, tensors, of.dataset, done.append)
    assert sum(done) == 2 * len(of.dataset)
    values = everything(of)
    for tensor in tensors:
        seen = values[tensor]
        assert found[tensor].low == pytest.approx(min(seen.min(), 0), rel=1e-5)
        assert found[tensor].high == pytest.approx(max(seen.max(), 0), rel=1e-5)
        assert found[tensor].counts.sum() == seen.size
        expected, _ = np.histogram(seen, bins=BINS, range=(found[tensor].low, found[tensor].high))
        shifted = np.abs(np.cumsum(found[tensor].counts) - np.cumsum(expected)).max()
        assert shifted <= max(2, 1e-3 * seen.size)


def test_what_is_joined_has_the_grid_of_the_whole() -> None:
    of = small("concat")
    whole = of.table.activations["concat_out"][8]
    for tensor in ("expand1_relu_out", "expand3_relu_out"):
        assert of.table.activations[tensor] == {8: whole}


def test_grids_are_handed_from_one_concat_to_the_next() -> None:
    b = Builder()
    inner = b.op("Concat", [b.conv("x", "one", 3, 4), b.conv("x", "two", 3, 4)], "inner", axis=1)
    outer = b.op("Concat", [inner, b.conv("x", "three", 3, 8)], "outer", axis=1)
    of = ready(
        b.model(b.classifier(b.relu(b.conv(outer, "four", 16, 4), "relu"), 4, 3), (3, 8, 8), (3,)),
        images((3, 8, 8), 16),
    )
    whole = of.table.activations["outer_out"][8]
    assert whole.zero_point > 0
    for tensor in ("one_out", "two_out", "inner_out", "three_out"):
        assert of.table.activations[tensor][8] == whole


def test_a_fused_relu_keeps_a_grid_that_clips_as_it_does() -> None:
    """That of the whole goes below 0, and the Relu would stand, with a float convolution in front of it."""
    b = Builder()
    positive = b.relu(b.conv("x", "one", 3, 4), "relu")
    whole = b.op("Concat", [positive, b.conv("x", "two", 3, 4)], "whole", axis=1)
    of = ready(
        b.model(b.classifier(b.relu(b.conv(whole, "three", 8, 4), "last"), 4, 3), (3, 8, 8), (3,)),
        images((3, 8, 8), 16),
    )
    grids = of.table.activations
    assert set(of.placement.joined) == {"relu_out", "two_out"}
    assert grids["relu_out"][8].zero_point == 0 < grids["whole_out"][8].zero_point
    assert grids["two_out"][8] == grids["whole_out"][8]


def test_what_fills_up_the_last_batch_is_not_counted() -> None:
    graph, network, placement = searched(residual_convnet(batch=4))
    found = observe(graph, placement.storage, dataset_of(images((3, 16, 16), 10)), lambda _: None)
    for tensor in placement.storage:
        assert found[tensor].counts.sum() == 10 * graph.elements(tensor)
    assert network.batch == 4


def test_tensors_that_mix_the_images_of_a_batch_are_seen_whole() -> None:
    b = Builder()
    turned = b.op("Transpose", ["x"], "tokens", perm=[1, 0, 2])
    hidden = b.op("Tanh", [b.linear(turned, "one", 4, 4)], "act")
    mean = b.op("ReduceMean", [b.linear(hidden, "two", 4, 4)], "mean", axes=[0], keepdims=0)
    graph, _, placement = searched(b.model(b.gemm(mean, "fc", 4, 3), (20, 4), (3,)))
    found = observe(graph, placement.storage, dataset_of(images((20, 4), 6)), lambda _: None)
    assert found["tokens_out"].counts.sum() == 6 * 20 * 4


@pytest.mark.parametrize("name", SMALL)
def test_the_table_has_what_any_allocation_may_ask_for(name: str) -> None:
    of = small(name)
    groups = {group.name for group in of.network.groups}
    assert set(of.table.activations) == {*of.placement.storage, *groups}
    for tensor, grids in of.table.activations.items():
        assert sorted(grids) == (list(BITS) if tensor in groups else [8])
        assert all(grids[bits].bits == bits for bits in grids)
    for layer in of.network.layers:
        if layer.weight is None:
            assert layer.name not in of.table.weights
        else:
            assert sorted(of.table.weights[layer.name]) == list(BITS)
    for bits in (2, 8):
        quantizers = quantizers_of(of.table, of.placement, of.uniform(8, bits)[1])
        assert set(quantizers.storage) == set(of.placement.storage)
        assert {quantizer.bits for quantizer in quantizers.storage.values()} == {8}
        assert set(quantizers.groups) == groups
        assert {quantizer.bits for quantizer in quantizers.groups.values()} == {bits}


def test_8_bits_are_always_there_and_7_of_weights_that_stand_in_for_them() -> None:
    of = small("mlp")
    table = calibrate(of.graph, of.network, of.placement, of.dataset, (3,), lambda _: None)
    assert sorted(table.activations["x"]) == [3, 8]
    assert sorted(table.weights["fc1"]) == [3, 7, 8]


def test_grids_are_fitted_to_the_float_network() -> None:
    """Each bit-width from the histogram itself, not by way of the 8-bit grid."""
    of = small("mlp")
    values = everything(of)["relu1_out"]
    histogram = Histogram.empty(float(values.min()), float(values.max()))
    histogram.add(values)
    for bits in (2, 5, 8):
        assert of.table.activations["relu1_out"][bits].scale == pytest.approx(mse(histogram, bits).scale, rel=1e-5)
        np.testing.assert_array_equal(of.table.weights["fc2"][bits], weight_scales(of.graph.constant("fc2_w"), bits, 0))


def test_an_inherited_tensor_has_the_grid_of_its_root_at_8_bits() -> None:
    of = small("concat")
    assert of.placement.inherited == {"pool_out": "stem_relu_out"}
    grids = of.table.activations
    assert grids["pool_out"][8] == grids["stem_relu_out"][8]
    # at fewer bits it is fitted to what is left after pooling
    assert grids["pool_out"][4].scale != grids["pool_out"][8].scale * 17
