"""Old operator sets."""

from __future__ import annotations

import onnx
import pytest

from infoq_onnx.errors import ModelError
from infoq_onnx.graph.editing import opset_of
from infoq_onnx.graph.normalize import normalize
from infoq_onnx.graph.passes.upgrade_opset import upgrade_opset
from tests.graph.compare import apply, assert_same_outputs
from tests.networks import Builder, mlp


def old_network(opset: int) -> onnx.ModelProto:
    """Return a net whose Clip, Dropout, Softmax, Squeeze, Pad and Upsample changed between opset 7 and 13."""
    b = Builder()
    y = b.batchnorm(b.conv("x", "conv", 3, 4), "bn", 4)
    if opset < 11:
        y = b.op("Clip", [y], "clip", min=0.0, max=6.0)
        y = b.op("Pad", [y], "pad", pads=[0, 0, 1, 1, 0, 0, 1, 1])
    else:
        y = b.relu6(y, "clip")
        y = b.op("Pad", [y, b.constant("pads", [0, 0, 1, 1, 0, 0, 1, 1], "int64")], "pad")
    if opset < 9:
        y = b.op("Upsample", [y], "up", scales=[1.0, 1.0, 2.0, 2.0], mode="nearest")
    y = b.op("Dropout", [b.op("GlobalAveragePool", [y], "gap")], "drop")
    y = b.op("Squeeze", [y], "squeeze", axes=[2, 3])
    y = b.gemm(y, "fc", 4, 5)
    y = b.op("Softmax", [y], "softmax", axis=1)
    return b.model(y, (3, 8, 8), (5,), opset=opset)


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12])
def test_old_models_run_the_same(opset: int) -> None:
    model = old_network(opset)
    edited, count = apply(upgrade_opset, model)
    assert count == 13 - opset
    assert opset_of(edited) == 13
    assert_same_outputs(model, normalize(model))


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_newer_models_stay(opset: int) -> None:
    model = mlp()
    model.opset_import[0].version = opset
    assert upgrade_opset(model) == 0
    assert opset_of(model) == opset


def test_default_domain_gets_one_spelling() -> None:
    model = mlp()
    model.opset_import[0].domain = "ai.onnx"
    model.graph.node[0].domain = "ai.onnx"
    edited, count = apply(upgrade_opset, model)
    assert count == 2
    assert not edited.opset_import[0].domain
    assert not edited.graph.node[0].domain


def test_operator_without_conversion_is_named() -> None:
    b = Builder()
    y = b.op("BatchNormalization", ["x", *(b.constant(name, [1.0] * 4) for name in "abcd")], "bn", spatial=0)
    model = b.model(y, (4,), (4,), opset=7)
    with pytest.raises(ModelError, match="opset 7 cannot be upgraded to 13: Attribute spatial must have"):
        upgrade_opset(model)
