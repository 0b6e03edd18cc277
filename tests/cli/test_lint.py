"""infoq-onnx lint on files of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from infoq_onnx.cli import main
from infoq_onnx.emit.qdq import qdq_model
from infoq_onnx.emit.storage import STORAGES
from infoq_onnx.simulate.simulation import layer_codes
from tests.networks import mlp
from tests.prepared import small


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    of = small("residual")
    bits = of.uniform(4, 4)
    codes = layer_codes(of.quantizable, bits)
    model = qdq_model(of.quantizable, bits, codes, STORAGES["packed"], {})
    onnx.save(model, tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


def test_integer_kernels(quantized: Path) -> None:
    result = CliRunner().invoke(main, ["lint", str(quantized), "--strict"])
    assert result.exit_code == 0
    layers = len(small("residual").network.layers)
    assert f"{layers} of {layers} layers run as integer kernels" in result.stdout
    assert "QLinearConv" in result.stdout


def test_a_float_model_fails_where_integer_kernels_are_wanted(tmp_path: Path) -> None:
    onnx.save(mlp(), tmp_path / "float.onnx")
    for options, code in (([], 0), (["--strict"], 1)):
        result = CliRunner().invoke(main, ["lint", str(tmp_path / "float.onnx"), *options])
        assert result.exit_code == code
        assert "0 of 3 layers run as integer kernels; fc1 does not: input x is the float input" in result.stdout
        assert result.stderr == ("--strict: of 3 layers, 3 left in float\n" if options else "")


def test_json(quantized: Path) -> None:
    found = json.loads(CliRunner().invoke(main, ["lint", str(quantized), "--json"]).stdout)
    assert {kernel["runs"] for kernel in found["kernels"]} == {"QLinearConv", "QGemm"}
    assert found["onnxruntime"]


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "no such file"), (b"", "is empty"), (b"hello", "is not an ONNX model"), (b"\x08\x08:", "damaged")],
)
def test_what_is_no_model_is_told_in_one_line(content: bytes | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    result = CliRunner().invoke(main, ["lint", str(path)])
    assert result.exit_code == 1
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_onnxruntime_cannot_load(quantized: Path) -> None:
    model = onnx.load(quantized)
    model.graph.node[-1].op_type = "NoSuchOperator"
    onnx.save(model, quantized)
    result = CliRunner().invoke(main, ["lint", str(quantized)])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "cannot load it" in result.stderr


def test_nothing_to_check_does_not_pass_a_strict_check(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    ends = [value(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "none", ends[:1], ends[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "none.onnx"
    )
    result = CliRunner().invoke(main, ["lint", str(tmp_path / "none.onnx"), "--strict"])
    assert result.exit_code == 1
    assert "no convolution and no matrix product" in result.stdout
    assert result.stderr == "--strict: the model has no layers\n"
