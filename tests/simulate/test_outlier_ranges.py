"""Tensors in which one channel dwarfs all others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from scipy.special import log_softmax

from infoq_onnx.graph.session import open_session
from infoq_onnx.quantize.ranges import Histogram
from infoq_onnx.schema import Quantizer
from infoq_onnx.simulate.quantizers import calibrate as module
from infoq_onnx.simulate.quantizers import outlier_ranges
from infoq_onnx.simulate.quantizers.outlier_ranges import is_stretched, shrunk
from infoq_onnx.simulate.running.batching import batch_size, logits_of
from infoq_onnx.simulate.simulation import simulation
from tests.networks import SMALL, Builder
from tests.prepared import Ready, images, ready, small


def massive_net() -> onnx.ModelProto:
    """Layers with a Tanh that does not mind how large the first of 32 channels is, as long as it is large.

    It only hears the first of the inputs.
    """
    b = Builder()
    y = b.op("Relu", [b.gemm("x", "one", 12, 32)], "relu")
    y = b.op("Tanh", [b.gemm(y, "two", 32, 16)], "tanh")
    model = b.model(b.gemm(y, "three", 16, 5), (12,), (5,))
    for initializer in model.graph.initializer:
        if initializer.name == "one_w":
            weight = numpy_helper.to_array(initializer).copy()
            weight[0], weight[:, 0], weight[0, 0] = 0, 0, 4000
            initializer.CopyFrom(numpy_helper.from_array(weight, initializer.name))
    return model


def of_massive_net(bits: tuple[int, ...]) -> Ready:
    """Calibrate it on noise in which the first input is heard three times."""
    values = images((12,), 900)
    values[:, 0] = 0
    values[::300, 0] = 1
    return ready(massive_net(), values, bits)


def divergence(of: Ready, activations: int) -> float:
    """KL divergence of the predictions with 8-bit weights."""
    session = open_session(of.graph.model)
    size = batch_size(of.graph)
    exact = log_softmax(logits_of(session, of.graph, of.dataset, size).astype(np.float64), axis=1)
    simulated = simulation(of.quantizable, of.uniform(8, activations))
    found = logits_of(open_session(simulated, integer_kernels=False), of.graph, of.dataset, size)
    return float(np.mean(np.sum(np.exp(exact) * (exact - log_softmax(found.astype(np.float64), axis=1)), axis=1)))


def test_a_shrunk_range_changes_the_predictions_less(monkeypatch: pytest.MonkeyPatch) -> None:
    of = of_massive_net((4, 8))
    monkeypatch.setattr(module, "is_stretched", lambda *_: False)
    before = of_massive_net((4, 8))
    grids = {
        bits: (of.table.activations["relu_out"][bits], before.table.activations["relu_out"][bits]) for bits in (4, 8)
    }
    for one, other in grids.values():
        assert one.scale < other.scale
    others = [name for name in of.table.activations if name != "relu_out"]
    assert all(of.table.activations[name] == before.table.activations[name] for name in others)
    assert divergence(of, 8) < 0.5 * divergence(before, 8)


def test_few_images_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlier_ranges, "_IMAGES", 8)
    few = of_massive_net((8,)).table.activations["relu_out"][8]
    monkeypatch.setattr(module, "is_stretched", lambda *_: False)
    assert few.scale < of_massive_net((8,)).table.activations["relu_out"][8].scale


@pytest.mark.parametrize("name", SMALL)
def test_ordinary_tensors_are_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_stretched", lambda *_: False)
    assert ready(SMALL[name]()).table.activations == small(name).table.activations


def test_what_is_stretched() -> None:
    histogram = Histogram.empty(0.0, 100.0)
    histogram.add(np.append(np.ones(10_000), 100).astype(np.float32))
    # the root mean square is 1.4
    assert is_stretched(histogram, Quantizer(8, 100 / 255, 0))
    assert not is_stretched(histogram, Quantizer(8, 50 / 255, 0))
    assert not is_stretched(Histogram.empty(0.0, 0.0), Quantizer(8, 1.0, 0))
    assert not is_stretched(histogram, Quantizer(4, 100 / 15, 0))


def test_ranges_are_cut_at_their_larger_end() -> None:
    wide, held = Quantizer(8, 1.0, 55), Histogram.empty(-60.0, 240.0)  # the grid: -55 … 200
    assert shrunk(wide, held, 1.0) == wide
    half = shrunk(wide, Histogram.empty(-55.0, 240.0), 0.5)
    assert (half.scale, half.zero_point) == (pytest.approx(155 / 255), round(55 / (155 / 255)))
    narrow = shrunk(wide, held, 0.125)
    assert (narrow.scale, narrow.zero_point) == (pytest.approx(50 / 255), 127)
    # so coarse that what lies below 0 had no code; with smaller steps it has
    coarse, gelu = Quantizer(8, 1.0, 0), Histogram.empty(-0.2, 255.0)
    assert shrunk(coarse, gelu, 0.125).zero_point == round(0.2 / (32.075 / 255))
