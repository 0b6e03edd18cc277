"""Layer by layer, the quantized network is brought back to what the float network computes."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from infoq_onnx.graph.editing import expose
from infoq_onnx.graph.ort import run_session
from infoq_onnx.graph.session import open_session
from infoq_onnx.pipeline import allocate, analyze
from infoq_onnx.quantize.columns import to_rows
from infoq_onnx.quantize.gptq import Moments
from infoq_onnx.quantize.grid import weight_code_limits
from infoq_onnx.schema import Allocation, Layer, Network, from_json
from infoq_onnx.simulate import reconstruct as module
from infoq_onnx.simulate.batching import logits_of
from infoq_onnx.simulate.reconstruct import reconstruct
from infoq_onnx.simulate.simulation import LayerCodes, layer_codes, simulation
from tests.networks import SMALL, Builder, depthwise_net, mlp, residual_convnet
from tests.prepared import Bits, Ready, dataset_of, images, ready, searched, small, spread_of

Codes = Mapping[str, LayerCodes]


def quiet(layer: str, done: int, total: int) -> None:
    """Report nothing."""


def rounded(of: Ready, bits: Bits) -> dict[str, LayerCodes]:
    return reconstruct(of.graph, of.network, of.placement, of.table, *bits, of.dataset, quiet)


def made(model: onnx.ModelProto, count: int, bits: tuple[int, ...] = (4,)) -> Ready:
    return ready(model, images(searched(model)[1].input_shape, count), bits=bits)


def error_of(of: Ready, bits: Bits, codes: Codes | None) -> float:
    """How far the logits are from those of the float network, on images that nothing was fitted to."""
    held_out = dataset_of(images(of.network.input_shape, 64, seed=9))
    model = simulation(of.graph, of.network, of.placement, of.table, *bits, codes=codes)
    size = of.graph.batch or 64
    found = logits_of(open_session(model, integer_kernels=False), of.graph, held_out, size)
    expected = logits_of(open_session(of.graph.model), of.graph, held_out, size)
    return spread_of(found - expected, expected)


def assert_same(one: Codes, other: Codes) -> None:
    assert list(one) == list(other)
    for name, codes in one.items():
        for field in dataclasses.fields(LayerCodes):
            np.testing.assert_array_equal(getattr(codes, field.name), getattr(other[name], field.name))


def differ(one: Codes, other: Codes) -> bool:
    return any(not np.array_equal(codes.weight, other[name].weight) for name, codes in one.items())


# -------------------------------------------------------------------------------------------------------- the whole net


@functools.cache
def fitted(name: str) -> Ready:
    counts = {"depthwise": 128, "attention": 256, "mlp": 256, "fixed batch": 40}
    return made(SMALL[name](), counts.get(name, 64), (3, 4))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("weights", "activations", "share"), [(3, 8, 0.85), (4, 4, 0.95)])
def test_computes_better_than_nearest_codes(name: str, weights: int, activations: int, share: float) -> None:
    of = fitted(name)
    bits = of.uniform(weights, activations)
    assert error_of(of, bits, rounded(of, bits)) < share * error_of(of, bits, None)


@pytest.mark.parametrize("name", ["residual", "concat", "batchnorm"])
def test_convolutions_lose_a_fraction(name: str) -> None:
    of = fitted(name)
    bits = of.uniform(3, 8)
    assert error_of(of, bits, rounded(of, bits)) < 0.2 * error_of(of, bits, None)


@pytest.mark.parametrize("name", SMALL)
def test_codes_are_of_the_kind_that_nearest_ones_are(name: str) -> None:
    of = small(name)
    bits = of.mixed(seed=3)
    nearest, found = layer_codes(of.graph, of.network, of.table, *bits), rounded(of, bits)
    assert list(nearest) == list(found)
    for layer, codes in found.items():
        low, high = weight_code_limits(bits[0][layer])
        assert low <= codes.weight.min() <= codes.weight.max() <= high
        assert np.all(codes.scales > 0)
        for field in dataclasses.fields(LayerCodes):
            one, other = getattr(codes, field.name), getattr(nearest[layer], field.name)
            assert (one is None) == (other is None)
            if one is not None:
                assert (one.shape, one.dtype) == (other.shape, other.dtype)


@pytest.mark.parametrize("name", ["residual", "attention"])
def test_twice_is_the_same(name: str) -> None:
    of = small(name)
    assert_same(rounded(of, of.mixed(seed=1)), rounded(of, of.mixed(seed=1)))


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

    def read(start: int, stop: int) -> npt.NDArray[np.float32]:
        reads.append(start)
        return images((3, 16, 16))[start:stop]

    counted = dataclasses.replace(of, dataset=dataclasses.replace(of.dataset, _read=read))
    rounded(counted, of.uniform(4, 4))
    once = len(reads)
    # the first layer's moments of two streams, and what each keeps behind it
    assert once == 4
    monkeypatch.setattr(module, "_KEPT_BYTES", 0)
    rounded(counted, of.uniform(4, 4))
    assert len(reads) - once == 2 * len(of.network.layers)


def test_progress_is_told() -> None:
    of = small("mlp")
    told: list[tuple[str, int, int]] = []
    reconstruct(
        of.graph,
        of.network,
        of.placement,
        of.table,
        *of.uniform(4, 4),
        of.dataset,
        lambda layer, done, total: told.append((layer, done, total)),
    )
    assert told == [("fc1", 0, 3), ("fc2", 1, 3), ("fc3", 2, 3), ("", 3, 3)]


# ---------------------------------------------------------------------------------------------------------- one by one


def tensors_of(of: Ready, model: onnx.ModelProto, names: list[str], *, integer: bool) -> list[np.ndarray]:
    """Tensors inside a model, of all images."""
    session = open_session(expose(model, names), integer_kernels=integer)
    batches = of.dataset.batches(of.graph.batch or len(of.dataset))
    parts = [run_session(session, {of.graph.input: batch}, names) for batch in batches]
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


def watch(monkeypatch: pytest.MonkeyPatch) -> dict[str, Moments]:
    """Collect the moments that each layer is fitted to."""
    seen: dict[str, Moments] = {}
    inner: Callable[..., Moments] = module._moments

    def keep(reference: Any, student: Any, layer: Layer, form: Any) -> Moments:
        seen[layer.name] = inner(reference, student, layer, form)
        return seen[layer.name]

    monkeypatch.setattr(module, "_moments", keep)
    return seen


def node_called(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


@pytest.mark.parametrize(
    ("name", "shortcuts"),
    [
        ("residual", {"a2": "a_add", "b_short": "b_add"}),
        ("depthwise", {"project1": "add"}),
        ("concat", {}),
    ],
)
def test_targets_are_float_outputs_and_float_sums(
    name: str, shortcuts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written out: of a layer in front of a residual Add, the float sum less the quantized shortcut."""
    of = small(name)
    bits = of.uniform(4, 4)
    seen = watch(monkeypatch)
    model = simulation(of.graph, of.network, of.placement, of.table, *bits, codes=rounded(of, bits))
    for layer in of.network.layers:
        wanted, sources = layer.output, [node_called(model, layer.name).input[0]]
        if layer.name in shortcuts:
            add = node_called(of.graph.model, shortcuts[layer.name])
            wanted, side = add.output[0], 1 - list(add.input).index(layer.output)
            sources.append(node_called(model, add.name).input[side])
        target = tensors_of(of, of.graph.model, [wanted], integer=True)[0]
        values = tensors_of(of, model, sources, integer=False)
        if layer.name in shortcuts:
            target -= values[1]
        form, found = module._form(of.graph, layer), seen[layer.name]
        assert form is not None
        x, t = form.columns(values[0]).astype(np.float64), form.outputs(target).astype(np.float64)
        np.testing.assert_allclose(found.input_mean, x.mean(axis=1), atol=1e-4)
        np.testing.assert_allclose(found.target_mean, t.mean(axis=1), atol=1e-4)
        x, t = x - x.mean(axis=1, keepdims=True), t - t.mean(axis=1, keepdims=True)
        second, cross = found.second(centred=True)
        np.testing.assert_allclose(second, x.transpose(0, 2, 1) @ x / x.shape[1], atol=1e-3)
        np.testing.assert_allclose(cross, t.transpose(0, 2, 1) @ x / x.shape[1], atol=1e-3)


def two_readers(b: Builder, y: str) -> str:
    return b.op("Add", [b.op("Add", [y, "stem_out"], "sum"), y], "again")


def with_itself(b: Builder, y: str) -> str:
    return b.op("Add", [y, y], "sum")


def with_a_constant(b: Builder, y: str) -> str:
    return b.op("Add", [y, b.normal("shift", 1, 4, 1, 1)], "sum")


def with_what_comes_later(b: Builder, y: str) -> str:
    return b.op("Add", [y, b.op("Tanh", [b.conv("stem_out", "later", 4, 4)], "tanh")], "sum")


def with_what_is_broadcast(b: Builder, y: str) -> str:
    return b.op("Add", [y, "pooled_out"], "sum")


def behind_an_activation(b: Builder, y: str) -> str:
    return b.op("Add", [b.relu(y, "relu"), "stem_out"], "sum")


def a_product(b: Builder, y: str) -> str:
    return b.op("Mul", [y, "stem_out"], "sum")


def a_sum(b: Builder, y: str) -> str:
    return b.op("Add", ["stem_out", y], "sum")


def the_image(b: Builder, y: str) -> str:
    return b.op("Add", [y, "x"], "sum")


def summed(end: Callable[[Builder, str], str]) -> onnx.ModelProto:
    b = Builder()
    stem = b.conv("x", "stem", 4, 4)
    b.op("GlobalAveragePool", [stem], "pooled")
    y = end(b, b.conv(stem, "branch", 4, 4))
    return b.model(b.classifier(b.op("Add", [y, "pooled_out"], "last"), 4, 5), (4, 6, 6), (5,))


@pytest.mark.parametrize(
    ("end", "found"),
    [
        (a_sum, True),
        (the_image, True),
        (two_readers, False),
        (with_itself, False),
        (with_a_constant, False),
        (with_what_comes_later, False),
        (with_what_is_broadcast, False),
        (behind_an_activation, False),
        (a_product, False),
    ],
)
def test_which_sums_are_targets(end: Callable[[Builder, str], str], found: bool) -> None:
    graph, network, _ = searched(summed(end))
    layer = next(layer for layer in network.layers if layer.name == "branch")
    shortcut = module._shortcut(graph, layer)
    assert (shortcut is not None) == found
    if shortcut is not None:
        assert shortcut.name == "sum"


def test_a_branch_mends_what_its_shortcut_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    of = made(summed(a_sum), 64, (3, 4))
    weights, activations = of.uniform(4, 8)
    bits = ({**weights, "stem": 3}, activations)
    exact = tensors_of(of, of.graph.model, ["sum_out"], integer=True)[0]

    def error() -> float:
        model = simulation(of.graph, of.network, of.placement, of.table, *bits, codes=rounded(of, bits))
        return spread_of(tensors_of(of, model, ["sum_out"], integer=False)[0] - exact, exact)

    aware = error()
    monkeypatch.setattr(module, "_shortcut", lambda graph, layer: None)  # noqa: ARG005
    assert aware < 0.92 * error()


def test_an_output_of_the_network_is_itself_a_target() -> None:
    model = summed(a_sum)
    model.graph.output.append(helper.make_tensor_value_info("branch_out", TensorProto.FLOAT, ["batch", 4, 6, 6]))
    graph, network, _ = searched(model)
    assert module._shortcut(graph, next(layer for layer in network.layers if layer.name == "branch")) is None


# ---------------------------------------------------------------------------------------------------------------- forms


def layer_called(network: Network, name: str) -> Layer:
    return next(layer for layer in network.layers if layer.name == name)


def padded_conv(auto_pad: str, size: int, kernel: int, stride: int) -> onnx.ModelProto:
    b = Builder()
    weight = b.normal("w", 4, 3, kernel, 2, fan_in=3 * kernel * 2)
    y = b.op(
        "Conv",
        ["x", weight],
        "conv",
        auto_pad=auto_pad,
        strides=[stride, 1],
        kernel_shape=[kernel, 2],
    )
    return b.model(b.classifier(b.relu(y, "relu"), 4, 3), (3, size, 7), (3,))


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(8, 3, 1), (8, 3, 2), (9, 4, 2), (9, 2, 1), (9, 1, 3), (7, 5, 4)]
)
def test_padding_that_the_operator_finds_itself(auto_pad: str, size: int, kernel: int, stride: int) -> None:
    graph, network, _ = searched(padded_conv(auto_pad, size, kernel, stride))
    form = module._form(graph, layer_called(network, "conv"))
    assert form is not None
    x = images((3, size, 7), 2)
    expected = run_session(open_session(expose(graph.model, ["conv_out"])), {"x": x}, ["conv_out"])[0]
    found = form.columns(x) @ to_rows(graph.constant("w"), 0, 1).transpose(0, 2, 1)
    np.testing.assert_allclose(found, form.outputs(expected), atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_every_form_computes_its_layer(name: str) -> None:
    of = small(name)
    for layer in of.network.layers:
        form = module._form(of.graph, layer)
        if form is None:
            continue
        weight, axis = module._weight(of.graph, layer)
        source, target = tensors_of(of, of.graph.model, [layer.groups[0], layer.output], integer=True)
        found = form.columns(source) @ to_rows(weight, axis, form.groups).transpose(0, 2, 1)
        if layer.bias is not None:
            found += of.graph.constant(layer.bias).reshape(form.groups, 1, -1)
        np.testing.assert_allclose(found, form.outputs(target), atol=1e-4)


def test_which_layers_have_no_form() -> None:
    none = {
        name: [layer.name for layer in small(name).network.layers if module._form(small(name).graph, layer) is None]
        for name in SMALL
    }
    assert none.pop("batchnorm") == ["up"]
    assert none.pop("attention") == ["scores", "mix"]
    assert not any(none.values())


def test_transposed_convolutions_keep_their_nearest_codes() -> None:
    of = small("batchnorm")
    bits = of.uniform(3, 4)
    nearest, found = layer_codes(of.graph, of.network, of.table, *bits)["up"], rounded(of, bits)["up"]
    assert_same({"up": nearest}, {"up": found})
    assert found.bias is None


def left_constant() -> onnx.ModelProto:
    b = Builder()
    left = b.op("Tanh", [b.op("MatMul", [b.normal("left_w", 6, 8, fan_in=8), "x"], "left")], "tanh")
    return b.model(b.gemm(b.op("ReduceMean", [left], "mean", axes=[2], keepdims=0), "fc", 6, 5), (8, 10), (5,))


def rows_for_a_bias() -> onnx.ModelProto:
    """A Gemm that adds another row to every image of its fixed batch: nothing that its weights should make."""
    b = Builder()
    y = b.op("Gemm", ["x", b.normal("left_w", 16, 12, fan_in=12), b.normal("rows", 2, 16)], "left", transB=1)
    return b.model(b.gemm(b.relu(y, "relu"), "fc", 16, 4), (12,), (4,), batch=2)


def computed_bias() -> onnx.ModelProto:
    b = Builder()
    shift = b.op("ReduceMax", ["x"], "shift", axes=[0, 2, 3], keepdims=0)
    y = b.op("Conv", ["x", b.normal("left_w", 3, 3, 3, 3, fan_in=27), shift], "left")
    return b.model(b.classifier(b.relu(y, "relu"), 3, 4), (3, 6, 6), (4,))


@pytest.mark.parametrize("network", [left_constant, rows_for_a_bias, computed_bias])
def test_layers_that_are_no_plain_product_keep_their_nearest_codes(network: Callable[[], onnx.ModelProto]) -> None:
    of = made(network(), 32)
    bits = of.uniform(4, 4)
    nearest, found = layer_codes(of.graph, of.network, of.table, *bits), rounded(of, bits)
    assert_same({"left": nearest["left"]}, {"left": found["left"]})
    assert differ(nearest, found)


def without_biases() -> onnx.ModelProto:
    b = Builder()
    y = b.relu(b.conv("x", "one", 3, 8, bias=False), "relu1")
    y = b.relu(b.conv(y, "two", 8, 8, group=8, bias=False), "relu2")
    pooled = b.op("Flatten", [b.op("GlobalAveragePool", [y], "gap")], "flatten", axis=1)
    return b.model(b.op("MatMul", [pooled, b.normal("fc_w", 8, 5, fan_in=8)], "fc"), (3, 8, 8), (5,))


def test_without_biases() -> None:
    of = made(without_biases(), 64, (3,))
    bits = of.uniform(3, 8)
    codes = rounded(of, bits)
    assert all(held.bias is None for held in codes.values())
    assert error_of(of, bits, codes) < 0.8 * error_of(of, bits, None)


def test_a_pruned_channel_keeps_its_bias() -> None:
    """Its target does not vary, and neither may its bias drown in a scale that is fitted to noise."""
    model = residual_convnet()
    for tensor in model.graph.initializer:
        if tensor.name in ("a1_w", "a1_b"):
            values = numpy_helper.to_array(tensor).copy()
            values[2] = 0.0 if tensor.name == "a1_w" else 0.7
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    of = made(model, 32)
    held = rounded(of, of.uniform(4, 8))["a1"]
    assert held.bias is not None
    assert held.bias_scales is not None
    assert not held.weight[2].any()
    assert held.bias[2] * held.bias_scales[2] == pytest.approx(0.7, abs=0.01)


def test_a_dead_layer_is_no_obstacle() -> None:
    """Behind a Relu that never opens all inputs are 0, and what follows does not vary at all."""
    model = residual_convnet()
    for tensor in model.graph.initializer:
        if tensor.name == "stem_b":
            tensor.CopyFrom(numpy_helper.from_array(np.full(8, -99, np.float32), tensor.name))
    of = made(model, 16)
    codes = rounded(of, of.uniform(4, 4))
    assert all(np.isfinite(held.scales).all() for held in codes.values())
    # constant logits have no spread of their own
    expected = logits_of(open_session(of.graph.model), of.graph, of.dataset, 16)
    simulated = simulation(of.graph, of.network, of.placement, of.table, *of.uniform(4, 4), codes=codes)
    found = logits_of(open_session(simulated, integer_kernels=False), of.graph, of.dataset, 16)
    np.testing.assert_allclose(found, expected, atol=0.2)


# -------------------------------------------------------------------------------------------------- which columns enter


def test_a_draw_of_positions_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    of = fitted("residual")
    bits = of.uniform(3, 8)
    seen = watch(monkeypatch)
    every = rounded(of, bits)
    assert {name: moments.count for name, moments in seen.items()} == {
        layer.name: 64 * layer.output_shape[-1] ** 2 if layer.op_type == "Conv" else 64 for layer in of.network.layers
    }
    monkeypatch.setattr(module, "_POSITIONS", 16)
    some = rounded(of, bits)
    assert max(moments.count for moments in seen.values()) == 64 * 16
    assert_same(some, rounded(of, bits))
    assert differ(every, some)
    assert error_of(of, bits, some) < 0.35 * error_of(of, bits, None)


def tokens_first(tokens: int) -> onnx.ModelProto:
    """The batch is the second axis inside."""
    b = Builder()
    turned = b.op("Transpose", ["x"], "tokens", perm=[1, 0, 2])
    hidden = b.op("Tanh", [b.linear(turned, "one", 4, 4)], "act")
    mean = b.op("ReduceMean", [b.linear(hidden, "two", 4, 4)], "mean", axes=[0], keepdims=0)
    return b.model(b.gemm(mean, "fc", 4, 3), (tokens, 4), (3,))


def windowed() -> onnx.ModelProto:
    """Four windows of every image lie along the batch axis inside, as in Swin transformers."""
    b = Builder()
    y = b.op("Reshape", ["x", b.constant("apart", [-1, 3, 6, 6], np.int64)], "fold")
    weight = b.normal("one_w", 8, 3, 3, 3, fan_in=27)
    y = b.relu(b.op("Conv", [y, weight, b.normal("one_b", 8)], "one", auto_pad="SAME_UPPER", strides=[2, 1]), "relu")
    y = b.op("GlobalAveragePool", [y], "gap")
    y = b.op("Reshape", [y, b.constant("together", [-1, 32], np.int64)], "unfold")
    return b.model(b.gemm(y, "fc", 32, 5), (12, 6, 6), (5,))


@pytest.mark.parametrize(
    ("model", "positions"), [(tokens_first(20), 20), (tokens_first(300), 256), (windowed(), 4 * 3 * 6)]
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
    np.testing.assert_allclose(seen["stem"].target_mean.ravel(), output.mean(axis=(0, 2, 3)), atol=1e-5)


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


# --------------------------------------------------------------------------------------------------------- all the way


def saved(model: onnx.ModelProto, folder: Path) -> tuple[Path, Path]:
    onnx.save(model, folder / "float.onnx")
    np.savez(folder / "calib.npz", x=images(searched(model)[1].input_shape, 64))
    return folder / "float.onnx", folder / "calib.npz"


class Listener:
    """Keeps what is told of the rounding."""

    def __init__(self) -> None:
        self.rounding: list[tuple[str, int, int]] = []

    def progress(self, stage: str, detail: str, done: int, total: int) -> None:
        if stage == "rounding":
            self.rounding.append((detail, done, total))

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


@pytest.mark.parametrize("network", [mlp(), depthwise_net(size=8)], ids=["mlp", "depthwise"])
def test_allocate(network: onnx.ModelProto, tmp_path: Path) -> None:
    model, calib = saved(network, tmp_path)
    folder = analyze(model, calib, projections=2, bits=(3, 8), output=tmp_path / "a.infoq")
    listener = Listener()
    done = allocate(
        folder,
        uniform_bits=(3, 8),
        rounding="gptq",
        storage="int8",
        output=tmp_path / "mended.onnx",
        reporter=listener,
    )
    assert done.allocation.rounding == "gptq"
    assert done.verification.agreement >= 0.97
    assert done.verification.relative_rms < 0.01
    assert listener.rounding[-1][1] == len(done.network.layers)

    told = from_json(Allocation, done.allocation_path.read_text(encoding="utf-8"))
    written = onnx.load(done.model_path)
    inside = {entry.key: entry.value for entry in written.metadata_props}["infoq_onnx.allocation"]
    assert told == done.allocation
    assert json.loads(inside)["rounding"] == "gptq"

    plain = allocate(folder, uniform_bits=(3, 8), storage="int8", output=tmp_path / "nearest.onnx")
    assert plain.allocation.rounding == "nearest"
    assert plain.allocation.costs == done.allocation.costs
    again = allocate(folder, uniform_bits=(3, 8), rounding="gptq", storage="int8", output=tmp_path / "again.onnx")
    assert again.model_path.read_bytes() == done.model_path.read_bytes()

    x = images(done.network.input_shape, 64, seed=9)
    feeds = {done.network.input: x}
    mended, nearest, exact = (
        run_session(open_session(path), feeds)[0] for path in (done.model_path, plain.model_path, model)
    )
    assert spread_of(mended - exact, exact) < spread_of(nearest - exact, exact)
