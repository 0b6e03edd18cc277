"""BatchNormalization."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from infoq_onnx.graph.editing import initializers_of, to_array
from infoq_onnx.graph.passes.fold_batchnorm import fold_batchnorm
from tests.graph.compare import apply, operators
from tests.networks import Builder, batchnorm_net


def test_every_kind_of_layer() -> None:
    edited, count = apply(fold_batchnorm, batchnorm_net())
    assert count == 5
    assert "BatchNormalization" not in operators(edited)


def test_closed_form() -> None:
    b = Builder()
    y = b.op("Conv", ["x", b.constant("w", [[[[3.0]]]]), b.constant("b", [1.0])], "conv")
    values = {"gamma": 2.0, "beta": 0.5, "mean": -1.0, "var": 3.0}
    y = b.op(
        "BatchNormalization", [y, *(b.constant(name, [value]) for name, value in values.items())], "bn", epsilon=1.0
    )
    edited, _ = apply(fold_batchnorm, b.model(y, (1, 2, 2), (1, 2, 2)))
    constants = initializers_of(edited.graph)
    # s = 2 / sqrt(3 + 1) = 1: W = 3·s, b = (1 − (−1))·s + 0.5
    assert to_array(constants["w"]).item() == 3.0
    assert to_array(constants["b"]).item() == 2.5


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    group=st.sampled_from([1, 2, 3]),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    rank=st.sampled_from([1, 2]),
    transposed=st.booleans(),
    bias=st.booleans(),
)
def test_groups_and_ranks(group: int, inputs: int, outputs: int, rank: int, transposed: bool, bias: bool) -> None:
    b = Builder(inputs)
    cin, cout, kernel = group * inputs, group * outputs, (2,) * rank
    shape = (cin, outputs, *kernel) if transposed else (cout, inputs, *kernel)
    layer = ["x", b.normal("w", *shape)] + ([b.normal("b", cout)] if bias else [])
    y = b.op("ConvTranspose" if transposed else "Conv", layer, "layer", group=group)
    y = b.batchnorm(y, "bn", cout)
    size = 6 if transposed else 4
    _, count = apply(fold_batchnorm, b.model(y, (cin, *(5,) * rank), (cout, *(size,) * rank)))
    assert count == 1


def test_shared_weight_is_copied() -> None:
    b = Builder()
    weight = b.normal("w", 3, 3, 3, 3, fan_in=27)
    first = b.batchnorm(b.op("Conv", ["x", weight], "conv1", pads=[1, 1, 1, 1]), "bn1", 3)
    second = b.batchnorm(b.op("Conv", [first, weight], "conv2", pads=[1, 1, 1, 1]), "bn2", 3)
    edited, count = apply(fold_batchnorm, b.model(second, (3, 4, 4), (3, 4, 4)))
    assert count == 2
    assert edited.graph.node[0].input[1] != edited.graph.node[1].input[1]


def test_layer_with_another_reader_keeps_its_norm() -> None:
    b = Builder()
    conv = b.conv("x", "conv", 3, 3)
    y = b.op("Add", [b.batchnorm(conv, "bn", 3), conv], "add")
    _, count = apply(fold_batchnorm, b.model(y, (3, 4, 4), (3, 4, 4)))
    assert count == 0


def test_layer_that_writes_an_output_keeps_its_norm() -> None:
    b = Builder()
    model = b.model(b.batchnorm(b.conv("x", "conv", 3, 3), "bn", 3), (3, 4, 4), (3, 4, 4))
    model.graph.output.append(helper.make_tensor_value_info("conv_out", TensorProto.FLOAT, ["batch", 3, 4, 4]))
    _, count = apply(fold_batchnorm, model)
    assert count == 0


@pytest.mark.parametrize("op_type", ["Relu", "Identity"])
def test_norm_that_is_not_behind_a_layer_stays(op_type: str) -> None:
    b = Builder()
    y = b.batchnorm(b.op(op_type, [b.conv("x", "conv", 3, 3)], "between"), "bn", 3)
    _, count = apply(fold_batchnorm, b.model(y, (3, 4, 4), (3, 4, 4)))
    assert count == 0


def test_norm_in_training_mode_stays() -> None:
    b = Builder()
    y = b.conv("x", "conv", 3, 3)
    statistics = [b.constant(name, np.ones(3)) for name in ("gamma", "beta", "mean", "var")]
    y = b.op("BatchNormalization", [y, *statistics], "bn", ["y", "m", "v"], training_mode=1)
    model = b.model(y, (3, 4, 4), (3, 4, 4))
    assert fold_batchnorm(model) == 0


def test_computed_weight_keeps_its_norm() -> None:
    b = Builder()
    weight = b.op("Abs", [b.normal("w", 3, 3, 1, 1)], "abs")
    y = b.batchnorm(b.op("Conv", ["x", weight], "conv"), "bn", 3)
    _, count = apply(fold_batchnorm, b.model(y, (3, 4, 4), (3, 4, 4)))
    assert count == 0
