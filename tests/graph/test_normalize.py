"""The normal form as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from infoq_onnx.graph.editing import attribute, initializers_of, to_array
from infoq_onnx.graph.load import load_model
from infoq_onnx.graph.normalize import normalize
from tests.graph.compare import assert_same_outputs, operators
from tests.networks import SMALL, Builder, mlp, residual_convnet

RESNETS = ("cifar10_resnet20.onnx", "cifar10_resnet20_bn.onnx", "cifar10_resnet20_dynamo.onnx")
OTHERS = ("mobilenetv1_025.onnx", "mobilenetv2.onnx", "squeezenet1_1.onnx", "vit_tiny.onnx")


@pytest.mark.parametrize("name", SMALL)
def test_small_networks(name: str) -> None:
    model = SMALL[name]()
    before = model.SerializeToString()
    normal = normalize(model)
    assert model.SerializeToString() == before
    assert_same_outputs(model, normal)
    assert normalize(normal) == normal


@pytest.mark.parametrize("name", RESNETS + OTHERS)
def test_real_models(shared: Path, name: str) -> None:
    model = load_model(shared / "models" / name)
    normal = normalize(model)
    assert_same_outputs(model, normal)
    assert not {"Constant", "Identity", "BatchNormalization"}.intersection(operators(normal))


def test_three_exports_of_one_network_are_one(shared: Path) -> None:
    first, *others = (normalize(load_model(shared / "models" / name)) for name in RESNETS)
    for other in others:
        assert operators(other) == operators(first)
        for mine, theirs in zip(first.graph.node, other.graph.node, strict=True):
            for a, b in zip(_constants(first, mine), _constants(other, theirs), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def _constants(model: onnx.ModelProto, node: onnx.NodeProto) -> list[np.ndarray]:
    constants = initializers_of(model.graph)
    return [to_array(constants[name]) for name in node.input if name in constants and node.op_type in ("Conv", "Gemm")]


def test_mobilenet_classifier_becomes_a_gemm(shared: Path) -> None:
    normal = normalize(load_model(shared / "models" / "mobilenetv2.onnx"))
    assert operators(normal)[-3:] == ["GlobalAveragePool", "Flatten", "Gemm"]
    assert list(normal.graph.node[-1].output) == ["logits"]


def test_one_pass_opens_the_way_for_another() -> None:
    """A weight behind Identity and Transpose, a Dropout, a BatchNormalization: one Gemm is left."""
    b = Builder()
    b.nodes.append(helper.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(np.eye(4, dtype="f"))))
    weight = b.op("Transpose", [b.op("Identity", ["w"], "copy")], "turn", perm=[1, 0])
    y = b.op("Gemm", ["x", weight, b.constant("bias", [0.5])], "fc", alpha=2.0)
    y = b.batchnorm(b.op("Dropout", [y], "drop"), "bn", 4)
    model = b.model(y, (4,), (4,))
    normal = normalize(model)
    assert_same_outputs(model, normal)
    assert operators(normal) == ["Gemm"]
    assert attribute(normal.graph.node[0], "transB") == 1
    assert len(normal.graph.initializer) == 2


def test_ir_version_is_one_that_onnxruntime_reads() -> None:
    model = mlp()
    model.ir_version = onnx.IR_VERSION
    assert normalize(model).ir_version == 8


def test_second_output_keeps_its_name_and_values() -> None:
    model = residual_convnet()
    model.graph.output.append(helper.make_tensor_value_info("a_add_out", TensorProto.FLOAT, ["batch", 8, 16, 16]))
    assert_same_outputs(model, normalize(model))


BLOCKS = ["conv", "depthwise", "batchnorm", "relu", "clip", "identity", "dropout", "shortcut", "shared", "pool", "pad"]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=8), st.sampled_from([None, 2]))
def test_random_chains(blocks: list[str], batch: int | None) -> None:
    b = Builder(len(blocks))
    y = start = b.conv("x", "stem", 3, 4)
    shared = b.normal("shared", 4, 4, 1, 1, fan_in=4)
    for index, block in enumerate(blocks):
        name = f"{block}{index}"
        if block in ("conv", "depthwise"):
            y = b.conv(y, name, 4, 4, group=4 if block == "depthwise" else 1, bias=index % 2 == 0)
        elif block == "batchnorm":
            y = b.batchnorm(y, name, 4)
        elif block == "clip":
            y = b.relu6(y, name)
        elif block == "shortcut":
            y = b.op("Add", [y, start], name)
        elif block == "shared":
            y = b.op("Conv", [y, shared], name)
        elif block == "pool":
            y = b.op("AveragePool", [y], name, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        elif block == "pad":
            pads = b.op("Neg", [b.constant(f"{name}_p", [0, 0, 0, 0, 0, 0, 0, 0], np.int64)], f"{name}_neg")
            y = b.op("Pad", [y, pads], name)
        else:
            y = b.op(block.capitalize(), [y], name)
    model = b.model(b.classifier(y, 4, 3), (3, 5, 5), (3,), batch)
    normal = normalize(model)
    assert_same_outputs(model, normal)
    assert normalize(normal) == normal
