"""Models in training mode, and models that draw numbers, are refused when they are read; dead and idle ones are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from infoq_onnx.errors import ModelError
from infoq_onnx.pipeline import inspect
from infoq_onnx.preparation import prepare
from tests.networks import Builder
from tests.prepared import is_one_line


class Trained(Builder):
    """Adds what belongs to training."""

    def norm(self, x: str, outputs: int, **attributes: Any) -> str:
        names = [self.constant(f"norm_{name}", np.ones(8)) for name in ("gamma", "beta", "mean", "var")]
        written = ["norm_out", *(f"norm_{index}" for index in range(1, outputs))]
        return self.op("BatchNormalization", [x, *names], "norm", written, **attributes)

    def dropped(self, x: str, training: str) -> str:
        return self.op("Dropout", [x, self.constant("ratio", 0.5), training], "drop")

    def truth(self, value: bool) -> str:
        return self.constant("training", value, np.bool_)


def finished(b: Builder, y: str, path: Path, opset: int = 17, **options: Any) -> Path:
    """Write a model that ends in a classifier of `y`; it need not be one that onnx's checker takes."""
    logits = b.gemm(b.op("Flatten", [b.op("GlobalAveragePool", [y], "gap")], "flatten", axis=1), "fc", 8, 5)
    graph = helper.make_graph(
        b.nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(values, name) for name, values in b.weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, **options)
    onnx.save(model, path)
    return path


def refused(path: Path, *parts: str) -> None:
    for call in (prepare, inspect):
        with pytest.raises(ModelError) as caught:
            call(path)
        assert is_one_line(caught.value, str(path), *parts)


@pytest.mark.parametrize(
    ("opset", "outputs", "attributes"), [(7, 5, {}), (9, 5, {}), (13, 5, {}), (9, 2, {}), (15, 3, {"training_mode": 1})]
)
def test_batch_statistics(opset: int, outputs: int, attributes: dict[str, Any], tmp_path: Path) -> None:
    b = Trained()
    y = b.norm(b.conv("x", "conv", 3, 8), outputs, **attributes)
    path = finished(b, y, tmp_path / "m.onnx", opset)
    refused(path, "BatchNormalization 'norm'", "training mode", "model.eval()")


@pytest.mark.parametrize("opset", [9, 15])
def test_statistics_of_training_that_is_over(opset: int, tmp_path: Path) -> None:
    b = Trained()
    y = b.norm(b.conv("x", "conv", 3, 8), 1)
    assert [layer.name for layer in prepare(finished(b, y, tmp_path / "m.onnx", opset)).network.layers] == [
        "conv",
        "fc",
    ]


def test_outputs_without_a_name_ask_for_nothing(tmp_path: Path) -> None:
    b = Trained()
    y = b.norm(b.conv("x", "conv", 3, 8), 1)
    b.nodes[-1].output.extend([""] * 4)
    prepare(finished(b, y, tmp_path / "m.onnx", 9))


def test_dropout_that_drops(tmp_path: Path) -> None:
    b = Trained()
    y = b.dropped(b.relu(b.conv("x", "conv", 3, 8), "relu"), b.truth(True))
    refused(finished(b, y, tmp_path / "m.onnx"), "Dropout 'drop'", "training mode", "model.eval()")


def test_dropout_that_is_told_to_by_a_computation(tmp_path: Path) -> None:
    b = Trained()
    told = b.op("Not", [b.truth(False)], "not")
    refused(finished(b, b.dropped(b.conv("x", "conv", 3, 8), told), tmp_path / "m.onnx"), "Dropout", "training mode")
    b = Trained()
    node = helper.make_node("Constant", [], ["told"], value=numpy_helper.from_array(np.array(True)))
    b.nodes.append(node)
    refused(finished(b, b.dropped(b.conv("x", "conv", 3, 8), "told"), tmp_path / "m.onnx"), "Dropout", "training mode")


def test_dropout_that_passes_through(tmp_path: Path) -> None:
    b = Trained()
    y = b.dropped(b.conv("x", "conv", 3, 8), b.truth(False))
    prepare(finished(b, y, tmp_path / "m.onnx"))


NOISES: dict[str, dict[str, Any]] = {
    "RandomNormalLike": {},
    "RandomUniformLike": {"seed": 1.0},
    "Bernoulli": {},
}


@pytest.mark.parametrize("op_type", NOISES)
def test_noise(op_type: str, tmp_path: Path) -> None:
    b = Builder()
    y = b.op("Sigmoid", [b.conv("x", "conv", 3, 8)], "half")
    y = b.op("Add", [y, b.op(op_type, [y], "noise", **NOISES[op_type])], "sum")
    refused(finished(b, y, tmp_path / "m.onnx"), f"{op_type} 'noise'", "random numbers")


@pytest.mark.parametrize("op_type", ["RandomNormal", "RandomUniform"])
def test_noise_of_a_given_shape(op_type: str, tmp_path: Path) -> None:
    b = Builder()
    y = b.op("Add", [b.conv("x", "conv", 3, 8), b.op(op_type, [], "noise", shape=[1, 8, 8, 8])], "sum")
    refused(finished(b, y, tmp_path / "m.onnx"), f"{op_type} 'noise'", "random numbers")


def test_noise_that_nothing_reads(tmp_path: Path) -> None:
    b = Builder()
    y = b.conv("x", "conv", 3, 8)
    b.op("RandomNormalLike", [y], "noise")
    prepare(finished(b, y, tmp_path / "m.onnx"))


def test_noise_in_a_branch(tmp_path: Path) -> None:
    b = Builder()
    y = b.conv("x", "conv", 3, 8)
    branches = {}
    for name, op_type in (("then_branch", "RandomNormalLike"), ("else_branch", "Relu")):
        node = helper.make_node(op_type, [y], [f"{name}_out"], name=f"in_{name}")
        output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        branches[name] = helper.make_graph([node], name, [], [output])
    told = b.constant("told", True, np.bool_)
    refused(finished(b, b.op("If", [told], "if", **branches), tmp_path / "m.onnx"), "RandomNormalLike 'in_then_branch'")


def test_noise_in_a_function(tmp_path: Path) -> None:
    b = Builder()
    y = b.op("Noisy", [b.conv("x", "conv", 3, 8)], "call", domain="mine")
    nodes = [helper.make_node("RandomNormalLike", ["a"], ["n"]), helper.make_node("Add", ["a", "n"], ["y"])]
    function = helper.make_function("mine", "Noisy", ["a"], ["y"], nodes, [helper.make_opsetid("", 17)])
    path = finished(b, y, tmp_path / "m.onnx", functions=[function])
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    onnx.save(model, path)
    refused(path, "RandomNormalLike 'n'", "random numbers")
