"""Networks that are run layer by layer, from the images or from what was kept behind the last layer."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest

from infoq_onnx.graph.graph import Graph
from infoq_onnx.simulate.quantizers.calibrate import quantizers_of
from infoq_onnx.simulate.quantizers.insert import insert_quantizers
from infoq_onnx.simulate.running import streams as module
from infoq_onnx.simulate.running.streams import Stream
from infoq_onnx.simulate.simulation import layer_codes, simulation
from tests.networks import SMALL, residual_convnet
from tests.prepared import Ready, images, small, spread_of
from tests.simulate.rounded import made, rounded, tensors_of


@pytest.mark.parametrize("name", SMALL)
def test_going_on_from_kept_tensors_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory does not hold them, every layer is reached from the images; onnxruntime then fuses other nodes."""
    of = small(name)
    kept = rounded(of, of.uniform(4, 8))
    monkeypatch.setattr(module, "_KEPT_BYTES", 0)
    for layer, codes in rounded(of, of.uniform(4, 8)).items():
        np.testing.assert_array_equal(codes.weight, kept[layer].weight)
        np.testing.assert_allclose(codes.scales, kept[layer].scales, rtol=1e-4)


def test_tensors_are_kept_while_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the last convolution little is read, so that the images are not run again from the start."""
    of = small("residual")
    reads: list[int] = []

    def read(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        reads.append(int(positions[0]))
        return images((3, 16, 16))[positions]

    counted = dataclasses.replace(of, dataset=dataclasses.replace(of.dataset, _read=read))
    rounded(counted, of.uniform(4, 4))
    once = len(reads)
    # the first layer's moments of two streams, and what each keeps behind it
    assert once == 4
    monkeypatch.setattr(module, "_KEPT_BYTES", 0)
    rounded(counted, of.uniform(4, 4))
    assert len(reads) - once == 2 * len(of.network.layers)


def stream_of(of: Ready) -> Stream:
    return Stream(of.graph, of.dataset, integer=True)


def whole(stream: Stream, tensors: list[str], size: int) -> list[npt.NDArray[np.float32]]:
    return [np.concatenate(parts) for parts in zip(*stream.run(tensors, size), strict=True)]


@pytest.mark.parametrize("name", ["residual", "depthwise", "attention", "fixed batch"])
def test_tensors_are_the_same_from_the_images_and_from_what_was_kept(name: str) -> None:
    """Batches of seven, the last one short; the input and output of each layer, and the logits."""
    of = small(name)
    stream = stream_of(of)
    for layer in of.network.layers:
        tensors = [layer.groups[0], layer.output, of.graph.output]
        for found, expected in zip(
            whole(stream, tensors, 7), tensors_of(of, of.graph.model, tensors, integer=True), strict=True
        ):
            np.testing.assert_allclose(found, expected, atol=2e-5)
        stream.advance(layer)


def test_batches_are_of_the_size_asked_for_or_of_the_one_that_is_fixed() -> None:
    assert [len(part[0]) for part in stream_of(small("residual")).run(["a1_out"], 20)] == [20, 20, 8]
    assert [len(part[0]) for part in stream_of(small("fixed batch")).run(["a1_out"], 20)] == [1] * 48


def test_what_fills_up_a_batch_is_cut_off() -> None:
    of = made(residual_convnet(batch=4, size=8), 10)
    stream = stream_of(of)
    for _ in range(2):
        assert [len(part[0]) for part in stream.run(["b1_out"], 4)] == [4, 4, 2]
        stream.advance(of.network.layers[0])


def test_what_is_read_first_may_be_all_that_is_asked_for() -> None:
    of = small("mlp")
    np.testing.assert_array_equal(whole(stream_of(of), ["x"], 10)[0], np.concatenate(list(of.dataset.batches(48))))


def test_fixed_layers_compute_what_the_simulation_does() -> None:
    of = small("residual")
    bits = of.uniform(3, 4)
    codes = layer_codes(of.quantizable, bits)
    model = simulation(of.quantizable, bits, codes=codes)
    quantizers = quantizers_of(of.table, of.placement, bits[1])
    quantized = Graph(insert_quantizers(of.graph, of.network, of.placement, quantizers))
    stream = Stream(quantized, of.dataset, integer=False)
    for layer in of.network.layers:
        stream.fix(layer, codes[layer.name])
        found = whole(stream, [layer.output], 16)[0]
        expected = tensors_of(of, model, [layer.output], integer=False)[0]
        assert spread_of(found - expected, expected) < 1e-3
        stream.advance(layer)


def test_what_was_kept_behind_a_layer_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that is fixed too late changes nothing."""
    of = small("mlp")
    codes = layer_codes(of.quantizable, of.uniform(2, 8))
    first, second = of.network.layers[:2]
    before = whole(stream_of(of), ["logits"], 16)[0]
    for memory, same in ((2**20, True), (0, False)):
        monkeypatch.setattr(module, "_KEPT_BYTES", memory)
        stream = stream_of(of)
        stream.advance(first)
        stream.fix(first, codes[first.name])
        assert np.allclose(whole(stream, ["logits"], 16)[0], before, atol=1e-5) == same
        stream.fix(second, codes[second.name])
        assert not np.allclose(whole(stream, ["logits"], 16)[0], before, atol=1e-2)
