"""Networks that are rounded with a view to their images, for the tests of all that has a part in it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from infoq_onnx.graph.editing import expose
from infoq_onnx.graph.ort import run_session
from infoq_onnx.graph.session import open_session
from infoq_onnx.quantize.codes import CodeTable
from infoq_onnx.quantize.moments import Moments
from infoq_onnx.schema import Bits, Layer, Network
from infoq_onnx.simulate.rounding import sequential as module
from infoq_onnx.simulate.rounding.gather import Gathered
from infoq_onnx.simulate.rounding.layerwise import round_layerwise
from infoq_onnx.simulate.running.batching import logits_of
from infoq_onnx.simulate.simulation import LayerCodes, simulation
from tests.networks import SMALL, Builder
from tests.prepared import Ready, dataset_of, images, ready, searched, spread_of

Codes = Mapping[str, LayerCodes]


def quiet(layer: str, done: int, total: int) -> None:
    """Report nothing."""


def made(model: onnx.ModelProto, count: int, bits: tuple[int, ...] = (4,)) -> Ready:
    return ready(model, images(searched(model)[1].input_shape, count), bits=bits)


@functools.cache
def fitted(name: str) -> Ready:
    """A small network with images enough to fit it to."""
    counts = {"depthwise": 128, "attention": 256, "mlp": 256, "fixed batch": 40}
    return made(SMALL[name](), counts.get(name, 64), (3, 4))


def layer_called(network: Network, name: str) -> Layer:
    return next(layer for layer in network.layers if layer.name == name)


# ------------------------------------------------------------------------------------------------------------- rounding


def rounded(of: Ready, bits: Bits) -> dict[str, LayerCodes]:
    """Codes of layers that are rounded side by side."""
    return module.round_sequential(of.quantizable, bits, of.dataset, quiet)


def alone(of: Ready, bits: Sequence[int]) -> CodeTable:
    """Weights of layers that are rounded each by itself."""
    return round_layerwise(of.graph, of.network, of.dataset, bits, quiet)


def watch(monkeypatch: pytest.MonkeyPatch) -> dict[str, Moments]:
    """Collect the moments that each layer of `rounded` is fitted to."""
    seen: dict[str, Moments] = {}
    inner: Callable[..., Gathered] = module.gather

    def keep(reference: Any, student: Any, layer: Layer, *given: Any) -> Gathered:
        found = inner(reference, student, layer, *given)
        seen[layer.name] = found.moments
        return found

    monkeypatch.setattr(module, "gather", keep)
    return seen


def assert_same(one: Codes, other: Codes) -> None:
    assert list(one) == list(other)
    for name, codes in one.items():
        assert codes.rounded.bits == other[name].rounded.bits
        for field in ("weight", "scales", "bias", "bias_scales"):
            np.testing.assert_array_equal(getattr(codes, field), getattr(other[name], field))
        np.testing.assert_array_equal(codes.rounded.origins, other[name].rounded.origins)


def differ(one: Codes, other: Codes) -> bool:
    """Whether the weights of any layer do."""
    return any(
        not np.array_equal(codes.weight, other[name].weight) or not np.array_equal(codes.scales, other[name].scales)
        for name, codes in one.items()
    )


# ----------------------------------------------------------------------------------------------------------- measuring


def error_of(of: Ready, bits: Bits, codes: Codes | None) -> float:
    """How far the logits are from those of the float network, on images that nothing was fitted to."""
    held_out = dataset_of(images(of.network.input_shape, 64, seed=9))
    model = simulation(of.quantizable, bits, codes=codes)
    size = of.graph.batch or 64
    found = logits_of(open_session(model, integer_kernels=False), of.graph, held_out, size)
    expected = logits_of(open_session(of.graph.model), of.graph, held_out, size)
    return spread_of(found - expected, expected)


def tensors_of(
    of: Ready, model: onnx.ModelProto, names: Sequence[str], *, integer: bool
) -> list[npt.NDArray[np.float32]]:
    """Tensors inside a model, of all images."""
    session = open_session(expose(model, names), integer_kernels=integer)
    batches = of.dataset.batches(of.graph.batch or len(of.dataset))
    parts = [run_session(session, {of.graph.input: batch}, list(names)) for batch in batches]
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


# ------------------------------------------------------------------------------------------------------------- networks


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


def without_biases() -> onnx.ModelProto:
    b = Builder()
    y = b.relu(b.conv("x", "one", 3, 8, bias=False), "relu1")
    y = b.relu(b.conv(y, "two", 8, 8, group=8, bias=False), "relu2")
    pooled = b.op("Flatten", [b.op("GlobalAveragePool", [y], "gap")], "flatten", axis=1)
    return b.model(b.op("MatMul", [pooled, b.normal("fc_w", 8, 5, fan_in=8)], "fc"), (3, 8, 8), (5,))


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
