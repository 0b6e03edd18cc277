"""Every quantizable operator, with and without bias, in groups or not: emitted files compute what was simulated.

onnxruntime rewrites a file when it loads it, and not in every version alike: `.ci/run` runs this with the oldest
supported one, too.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from infoq_onnx.emit.kernels import find_kernels
from infoq_onnx.emit.qdq import qdq_model
from infoq_onnx.emit.storage import STORAGES
from infoq_onnx.emit.targets import meeting_at_8_bits
from infoq_onnx.graph.session import open_session
from infoq_onnx.simulate.running.batching import batch_size, logits_of
from infoq_onnx.simulate.simulation import layer_codes, simulation
from tests.architectures import ARCHITECTURES
from tests.networks import Builder
from tests.prepared import ready, spread_of

CHANNELS = 8
BATCHES = [None, 1, 8]


def convolved(b: Builder, x: str, op_type: str, rank: int, group: int, bias: bool) -> str:
    per_group = CHANNELS // group
    weight = b.normal("tried_w", CHANNELS, per_group, *(2,) * rank, fan_in=per_group * 2**rank)
    inputs = [x, weight, *([b.constant("tried_b", b.random.standard_normal(CHANNELS))] if bias else [])]
    return b.op(op_type, inputs, "tried", group=group, strides=[2] * rank)


def convolution(op_type: str, rank: int, group: int, bias: bool, batch: int | None) -> onnx.ModelProto:
    """Between two other convolutions, as in a decoder."""
    b = Builder(group)
    stem = b.normal("stem_w", CHANNELS, 3, *(3,) * rank, fan_in=3 ** (rank + 1))
    y = b.relu(b.op("Conv", ["x", stem], "stem", pads=[1] * 2 * rank), "stem_relu")
    y = b.relu(convolved(b, y, op_type, rank, group, bias), "tried_relu")
    last = b.normal("last_w", CHANNELS, CHANNELS, *(1,) * rank, fan_in=CHANNELS)
    y = b.relu(b.op("Conv", [y, last], "last"), "last_relu")
    return b.model(b.classifier(y, CHANNELS, 5), (3, *(8,) * rank), (5,), batch)


def product(op_type: str, bias: str, behind: str, batch: int | None) -> onnx.ModelProto:
    """Dense layers on vectors (Gemm) or tokens (MatMul), with what exporters put behind them."""
    b = Builder(1)
    shape = (12,) if op_type == "Gemm" else (16, 12)
    weight = b.normal("tried_w", 12, 24, fan_in=12)
    values = {"none": None, "row": (24,), "matrix": (1, 24), "scalar": ()}[bias]
    inputs = ["x", weight]
    if values is not None:
        inputs.append(b.constant("tried_b", b.random.standard_normal(values)))
    if op_type == "Gemm":
        y = b.op("Gemm", inputs, "tried")
    else:
        y = b.op("MatMul", inputs[:2], "tried")
        y = b.op("Add", [y, inputs[2]], "tried_add") if bias != "none" else y
    for number, operator in enumerate(behind.split()):
        bounds = [b.constant(f"bound{index}", np.float32(at)) for index, at in enumerate((0, 1.5))]
        y = b.op(operator, [y, *(bounds if operator == "Clip" else [])], f"behind{number}")
    y = b.op("MatMul", [y, b.normal("second_w", 24, 16, fan_in=24)], "second")
    y = b.op("Add", [b.constant("second_b", b.random.standard_normal(16)), y], "second_add")
    if op_type == "MatMul":
        y = b.op("ReduceMean", [y], "mean", axes=[1], keepdims=0)
    return b.model(b.gemm(y, "fc", 16, 5), shape, (5,), batch)


def attention(batch: int | None) -> onnx.ModelProto:
    """A product of two activations."""
    b = Builder(2)
    q, k = (b.linear("x", name, 12, 12) for name in ("q", "k"))
    scores = b.op("MatMul", [q, b.op("Transpose", [k], "k_order", perm=[0, 2, 1])], "scores")
    mixed = b.op("MatMul", [b.op("Softmax", [scores], "softmax", axis=-1), b.linear("x", "v", 12, 12)], "mix")
    mean = b.op("ReduceMean", [b.linear(mixed, "proj", 12, 16)], "mean", axes=[1], keepdims=0)
    return b.model(b.gemm(mean, "fc", 16, 5), (16, 12), (5,), batch)


def assert_computes_what_was_simulated(model: onnx.ModelProto, bits: tuple[int, int]) -> onnx.ModelProto:
    of = ready(model, bits=(4, 8))
    chosen = of.uniform(*bits)
    exact = meeting_at_8_bits(of.quantizable, chosen)
    codes = layer_codes(of.quantizable, chosen, exact=exact)
    emitted = qdq_model(of.quantizable, chosen, codes, STORAGES["packed"], {})
    simulated = simulation(of.quantizable, chosen, codes=codes)
    size = batch_size(of.graph)
    expected = logits_of(open_session(simulated, optimize=False), of.graph, of.dataset, size)
    for optimize, most in ((False, 1e-5), (True, 0.02)):
        found = logits_of(open_session(emitted, optimize=optimize), of.graph, of.dataset, size)
        assert spread_of(found - expected, expected) < most
    return emitted


@pytest.mark.parametrize("bits", [(4, 4), (8, 8)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group", [1, 2, CHANNELS])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
def test_convolutions(op_type: str, rank: int, group: int, bias: bool, bits: tuple[int, int]) -> None:
    assert_computes_what_was_simulated(convolution(op_type, rank, group, bias, None), bits)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("bias", "behind"),
    [
        *(("row", behind) for behind in ("", "Relu", "Sigmoid", "Erf", "Relu Erf", "Clip", "Clip Erf")),
        *((bias, behind) for bias in ("none", "matrix", "scalar") for behind in ("", "Relu", "Relu Erf")),
    ],
)
@pytest.mark.parametrize("op_type", ["Gemm", "MatMul"])
def test_products(op_type: str, bias: str, behind: str, batch: int | None) -> None:
    emitted = assert_computes_what_was_simulated(product(op_type, bias, behind, batch), (4, 4))
    assert all(kernel.integer for kernel in find_kernels(emitted))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_is_an_integer_kernel_whatever_the_batch(name: str, batch: int | None) -> None:
    found = find_kernels(assert_computes_what_was_simulated(ARCHITECTURES[name](batch), (4, 8)))
    assert len(found) > 5
    assert {kernel.layer: kernel.reason for kernel in found if not kernel.integer} == {}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("bits", [(4, 4), (8, 8)])
def test_products_of_activations(bits: tuple[int, int], batch: int | None) -> None:
    emitted = assert_computes_what_was_simulated(attention(batch), bits)
    assert all(kernel.integer for kernel in find_kernels(emitted))


@pytest.mark.parametrize("op_type", ["Conv", "Gemm"])
@pytest.mark.parametrize("huge", [-1e30, -1e6])
def test_a_bias_that_switches_a_channel_off(op_type: str, huge: float) -> None:
    """The int32 sums of the kernels must not change their sign."""
    model = product("Gemm", "row", "Relu", None) if op_type == "Gemm" else convolution("Conv", 2, 1, True, None)
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "tried_b")
    values = numpy_helper.to_array(bias).copy()
    values[1] = huge
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    assert_computes_what_was_simulated(model, (8, 8))
