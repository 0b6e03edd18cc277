"""Which columns of which images a layer is fitted to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from infoq_onnx.quantize.moments import Moments, Statistics
from infoq_onnx.simulate.rounding import gather as module
from infoq_onnx.simulate.rounding.as_matmul import Form, form_of
from infoq_onnx.simulate.rounding.gather import Gathered, gather
from infoq_onnx.simulate.running.streams import Stream
from tests.networks import Builder, mlp, residual_convnet
from tests.prepared import dataset_of, images, searched, small
from tests.simulate.rounded import (
    assert_same,
    differ,
    error_of,
    fitted,
    layer_called,
    made,
    rounded,
    tensors_of,
    tokens_first,
    watch,
    windowed,
)


def test_a_draw_of_positions_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    of = fitted("residual")
    bits = of.uniform(3, 8)
    seen = watch(monkeypatch)
    every = rounded(of, bits)
    assert {name: moments.count for name, moments in seen.items()} == {
        layer.name: 64 * layer.output_shape[-1] ** 2 if layer.op_type == "Conv" else 64 for layer in of.network.layers
    }
    monkeypatch.setattr(module, "_POSITIONS", 64 * 16)
    monkeypatch.setattr(module, "_POSITIONS_A_WEIGHT", 0)
    some = rounded(of, bits)
    assert max(moments.count for moments in seen.values()) == 64 * 16
    assert_same(some, rounded(of, bits))
    assert differ(every, some)
    assert error_of(of, bits, some) < 0.35 * error_of(of, bits, None)


@pytest.mark.parametrize(
    ("model", "positions"), [(tokens_first(20), 20), (tokens_first(300), 300), (windowed(), 4 * 3 * 6)]
)
def test_the_batch_need_not_lead(model: onnx.ModelProto, positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    of = made(model, 20)
    seen = watch(monkeypatch)
    rounded(of, of.uniform(4, 8))
    assert seen["one"].count == 20 * positions
    assert seen["fc"].count == 20


def test_what_fills_up_a_batch_does_not_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    of = made(residual_convnet(batch=4, size=8), 10)
    seen = watch(monkeypatch)
    rounded(of, of.uniform(4, 4))
    assert {name: seen[name].count for name in ("stem", "b2", "fc")} == {"stem": 10 * 64, "b2": 10 * 16, "fc": 10}
    free = made(residual_convnet(size=8), 10)
    output = tensors_of(free, free.graph.model, ["stem_out"], integer=True)[0]
    np.testing.assert_allclose(
        seen["stem"].all(centred=True).target_mean.ravel(), output.mean(axis=(0, 2, 3)), atol=1e-5
    )


def test_batches_change_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums in another order may bring a code to the other side of a boundary, but not the logits far."""
    of = small("residual")
    bits = of.uniform(4, 8)
    whole = rounded(of, bits)
    monkeypatch.setattr(module, "_COLUMN_BYTES", 2**18)
    parts = rounded(of, bits)
    assert np.mean(whole["stem"].weight == parts["stem"].weight) > 0.95
    np.testing.assert_allclose(whole["stem"].scales, parts["stem"].scales, rtol=0.01)
    assert error_of(of, bits, parts) < 1.5 * error_of(of, bits, whole)


# --------------------------------------------------------------------------------------------------------------- halves


def of_its_own(model: onnx.ModelProto, name: str, values: npt.NDArray[np.float32]) -> Moments:
    """Moments of a layer's float input and output."""
    return everything_of(model, name, values)[0].moments


def everything_of(
    model: onnx.ModelProto, name: str, values: npt.NDArray[np.float32], bounds: tuple[float, float] | None = None
) -> tuple[Gathered, Form, npt.NDArray[np.float32]]:
    """What there is to know of a layer's float input and output, its form, and its bias, 0 without one."""
    graph, network, _ = searched(model)
    layer, stream = layer_called(network, name), Stream(graph, dataset_of(values), integer=True)
    form = form_of(graph, layer)
    assert form is not None
    bias = np.zeros(1, dtype=np.float32) if layer.bias is None else graph.constant(layer.bias)
    return gather(stream, stream, layer, form, bounds=bounds), form, bias


def assert_moments_of(half: Statistics, x: npt.NDArray[np.float32]) -> None:
    """Compare with those of some vectors [n, d] that a fully connected layer reads."""
    assert half.count == len(x)
    np.testing.assert_allclose(half.input_mean[0], x.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(half.second[0], np.cov(x, rowvar=False, bias=True), atol=1e-5)


@pytest.mark.parametrize("count", [30, 31])
def test_halves_are_the_first_images_of_each_batch_and_the_others(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = images((12,), count)
    for size in (8, 128):
        monkeypatch.setattr(module, "_COLUMN_BYTES", 4 * 12 * size)
        halves = of_its_own(mlp(), "fc1", x).halves(centred=True)
        assert halves is not None
        batches = [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
        first = np.concatenate([batch[: len(batch) // 2] for batch in batches])
        assert_moments_of(halves[0], x[first])
        assert_moments_of(halves[1], np.delete(x, first, axis=0))


def test_images_that_come_one_by_one_take_turns() -> None:
    x = images((12,), 15)
    halves = of_its_own(mlp(batch=1), "fc1", x).halves(centred=True)
    assert halves is not None
    assert_moments_of(halves[0], x[1::2])
    assert_moments_of(halves[1], x[0::2])


@pytest.mark.parametrize(
    ("model", "name"),
    [(residual_convnet(), "stem"), (residual_convnet(), "fc")],
)
def test_halves_are_of_different_images(model: onnx.ModelProto, name: str) -> None:
    """Else a fit that has learnt one half by heart would look good on the other."""
    x = images(searched(model)[1].input_shape, 20)
    other = x.copy()
    other[10:] += 1
    halves, changed = (of_its_own(model, name, values).halves(centred=True) for values in (x, other))
    assert halves is not None
    assert changed is not None
    np.testing.assert_allclose(changed[0].second, halves[0].second, atol=1e-6)
    np.testing.assert_allclose(changed[0].input_mean, halves[0].input_mean, atol=1e-6)
    assert not np.allclose(changed[1].input_mean, halves[1].input_mean, atol=1e-3)


@pytest.mark.parametrize("model", [windowed(), tokens_first(20)])
def test_a_batch_whose_images_lie_mixed_is_not_cut_in_half(model: onnx.ModelProto) -> None:
    x = images(searched(model)[1].input_shape, 20)
    assert of_its_own(model, "one", x).halves(centred=True) is None


# ------------------------------------------------------------------------------------------------------------- clipping


@pytest.mark.parametrize(("kept", "positions"), [(10**6, 20 * 64), (500, 20 * 22), (1, 20)])
def test_positions_in_front_of_an_activation(kept: int, positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CLIPPED_POSITIONS", kept)
    monkeypatch.setattr(module, "_COLUMN_BYTES", 1)  # an image a batch
    seen, form, bias = everything_of(residual_convnet(size=8), "stem", images((3, 8, 8), 20), (0.0, 6.0))
    clipped = seen.clipped
    assert clipped is not None
    assert (clipped.low, clipped.high, clipped.added) == (0.0, 6.0, None)
    assert clipped.columns.shape[:2] == clipped.targets.shape[:2] == (1, positions)
    made_of = clipped.columns @ form.rows().transpose(0, 2, 1) + bias
    np.testing.assert_allclose(clipped.targets, made_of, atol=1e-4)


def test_no_positions_where_nothing_clips() -> None:
    seen, _, _ = everything_of(residual_convnet(size=8), "stem", images((3, 8, 8), 4))
    assert seen.clipped is None


def test_massive_tokens_do_not_enter() -> None:
    values = images((8, 6), 20)
    values[:, 3] *= 1000
    b = Builder()
    y = b.op("Relu", [b.linear("x", "one", 6, 6)], "relu")
    model = b.model(b.gemm(b.op("ReduceMean", [y], "mean", axes=[1], keepdims=0), "fc", 6, 5), (8, 6), (5,))
    moments = of_its_own(model, "one", values)
    assert moments.count == 20 * 7
    ordinary = np.delete(values, 3, axis=1).reshape(-1, 6)
    np.testing.assert_allclose(moments.all(centred=True).input_mean[0], ordinary.mean(axis=0), atol=1e-5)
    # a vector an image is no token: none is left out
    values = images((6,), 20)
    values[0] *= 1000
    b = Builder()
    assert of_its_own(b.model(b.gemm("x", "fc", 6, 5), (6,), (5,)), "fc", values).count == 20


def test_errors_in_a_normalised_sum_count_by_what_normalisation_leaves_of_them() -> None:
    """Not by the size of the tokens; the fit is that of the normalised equation."""
    values = images((8, 6), 200)
    values[:, 3] *= 50
    b = Builder()
    y = b.op("Add", ["x", b.linear("x", "one", 6, 6)], "sum")
    y = b.op("LayerNormalization", [y, b.constant("scale", np.ones(6)), b.constant("shift", np.zeros(6))], "norm")
    model = b.model(b.gemm(b.op("ReduceMean", [y], "mean", axes=[1], keepdims=0), "fc", 6, 5), (8, 6), (5,))
    graph, network, _ = searched(model)
    layer = network.layers[0]
    form = form_of(graph, layer)
    assert form is not None
    streams = [Stream(graph, dataset_of(values), integer=False) for _ in range(2)]
    shortcut = next(node for node in graph.nodes if node.op_type == "Add" and "x" in node.input)
    found = gather(*streams, layer, form, shortcut).moments.all(centred=False)
    x = values.reshape(-1, 6).astype(np.float64)
    weight, bias = graph.constant(str(layer.weight)), graph.constant(str(layer.bias))
    total = x + x @ weight + bias
    weights = 1 / (total.var(axis=1) + 1e-5)
    np.testing.assert_allclose(found.second[0], (x.T * weights) @ x / weights.sum(), rtol=1e-4, atol=1e-5)
    target = x @ weight + bias
    np.testing.assert_allclose(found.cross[0], (target.T * weights) @ x / weights.sum(), rtol=1e-3, atol=1e-4)
    assert found.count == 200 * 8


def test_tokens_of_nothing_are_all_kept() -> None:
    outputs = np.zeros((1, 5, 3), dtype=np.float32)
    outputs[0, 4] = 1
    np.testing.assert_array_equal(module._ordinary(outputs), True)
    outputs[0, :4] = 0.01
    np.testing.assert_array_equal(module._ordinary(outputs), [True] * 4 + [False])
