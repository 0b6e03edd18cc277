"""Every node that holds weights or multiplies is a layer, or listed with its reason: by inspect and by lint alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from infoq_onnx.emit.kernels import find_kernels
from infoq_onnx.graph.float_only import float_reason
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.network import find_network
from tests.networks import residual_convnet

MATRIX = numpy_helper.from_array(np.ones((3, 4), np.float32), "w")
VECTOR = numpy_helper.from_array(np.ones((1, 4), np.float32), "w")


@pytest.mark.parametrize(
    ("op_type", "domain", "tensor", "told"),
    [
        ("Conv", "com.microsoft.nchwc", MATRIX, "without onnxruntime's optimisations"),
        ("FusedConv", "com.microsoft", MATRIX, "without onnxruntime's optimisations"),
        ("LSTM", "", MATRIX, "recurrent"),
        ("Gather", "", MATRIX, "embedding"),
        ("Foo", "com.example", MATRIX, "the operator Foo of com.example is kept in float"),
        ("Attention", "com.microsoft", MATRIX, "attention"),
        ("MaxRoiPool", "", MATRIX, "the operator MaxRoiPool is kept in float"),
        ("Foo", "com.example", VECTOR, None),
        ("Add", "", MATRIX, None),
        ("LayerNormalization", "", MATRIX, None),
        ("SkipLayerNormalization", "com.microsoft", VECTOR, None),
        ("Conv", "", MATRIX, None),
    ],
)
def test_reasons(op_type: str, domain: str, tensor: TensorProto, told: str | None) -> None:
    node = helper.make_node(op_type, ["w", "w"] if op_type == "Gather" else ["x", "w"], ["y"], domain=domain)
    found = float_reason(node, {"w": tensor})
    assert found is None if told is None else told in str(found)


def test_weights_that_are_attributes() -> None:
    """Classical models hold theirs so."""
    coefficients = [0.1] * 12
    node = helper.make_node("LinearClassifier", ["x"], ["l", "p"], domain="ai.onnx.ml", coefficients=coefficients)
    assert float_reason(node, {}) == "the operator LinearClassifier of ai.onnx.ml is kept in float"
    assert float_reason(helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", scale=[1.0]), {}) is None


def test_a_classical_model_is_seen_by_inspect_and_lint() -> None:
    weight = numpy_helper.from_array(np.ones((5, 4), np.float32), "w")
    classifier = {"coefficients": [0.1] * 15, "intercepts": [0.0] * 3, "classlabels_ints": [0, 1, 2]}
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["hidden"], "fc", transB=1),
        helper.make_node(
            "LinearClassifier", ["hidden"], ["label", "scores"], "linear", domain="ai.onnx.ml", **classifier
        ),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 4), ("scores", 3))
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "classical", ends[:1], ends[1:], [weight]),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)],
        ir_version=8,
    )
    network = find_network(Graph(model))
    assert [layer.name for layer in network.layers] == ["fc"]
    assert [(one.name, one.op_type) for one in network.skipped] == [("linear", "LinearClassifier")]
    assert [(one.layer, one.integer) for one in find_kernels(model)] == [("fc", False), ("linear", False)]


def test_a_file_that_onnxruntime_optimised(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fast.onnx")
    options.log_severity_level = 4
    model = residual_convnet()
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fast = onnx.load(tmp_path / "fast.onnx")
    layers = sum(node.op_type in ("Conv", "Gemm") for node in model.graph.node)
    kernels = find_kernels(fast)
    assert len(kernels) == layers
    assert not any(one.integer for one in kernels)
    fused = [one for one in kernels if one.op_type != "Gemm"]
    assert all("without onnxruntime's optimisations" in one.reason for one in fused if one.op_type != "Conv")
