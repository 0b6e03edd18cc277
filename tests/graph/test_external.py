"""The files of a model, their hash and size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from infoq_onnx.files import sha256_of
from infoq_onnx.graph.external import model_bytes, model_files, model_sha256
from tests.networks import Builder, mlp


def saved(model: ModelProto, path: Path, **options: bool | str) -> Path:
    onnx.save_model(model, path, save_as_external_data=True, size_threshold=0, **options)
    return path


def test_one_file_is_all_there_is(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(mlp(), path)
    assert model_files(path) == (path,)
    assert model_sha256(path) == sha256_of(path)
    assert model_bytes(path) == path.stat().st_size


def test_external_data_counts(tmp_path: Path) -> None:
    path, weights = saved(mlp(), tmp_path / "model.onnx", location="weights.bin"), tmp_path / "weights.bin"
    assert model_files(path) == (path, weights)
    assert model_bytes(path) == path.stat().st_size + weights.stat().st_size
    before = model_sha256(path)
    assert before != sha256_of(path)
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    assert model_sha256(path) != before
    weights.unlink()
    with pytest.raises(FileNotFoundError):
        model_sha256(path)


def test_a_file_for_each_tensor(tmp_path: Path) -> None:
    path = saved(mlp(), tmp_path / "model.onnx", all_tensors_to_one_file=False)
    assert [file.name for file in model_files(path)] == [
        "model.onnx", "fc1_b", "fc1_w", "fc2_b", "fc2_w", "fc3_b", "fc3_w"
    ]  # fmt: skip


def test_tensors_of_attributes_and_subgraphs(tmp_path: Path) -> None:
    def outside(location: str) -> onnx.TensorProto:
        tensor = numpy_helper.from_array(np.zeros(4, np.float32), location)
        onnx.external_data_helper.set_external_data(tensor, location)
        return tensor

    b = Builder()
    end = helper.make_tensor_value_info("branch_out", onnx.TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Constant", [], ["inner"], value=outside("attribute")),
        helper.make_node("Add", ["inner", "initializer"], ["branch_out"]),
    ]
    branch = helper.make_graph(nodes, "branch", [], [end], [outside("initializer")])
    condition = b.op("Greater", [b.op("ReduceMean", ["x"], "mean", keepdims=0), b.constant("zero", 0.0)], "positive")
    b.op("If", [condition], "if", then_branch=branch, else_branch=branch)
    path = tmp_path / "model.onnx"
    graph = helper.make_graph(b.nodes, "g", [], [])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert [file.name for file in model_files(path)] == ["model.onnx", "attribute", "initializer"]


def test_what_is_no_onnx_names_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "model.ort"
    path.write_bytes(b"\x00\x00\x00\x00ORTM" * 9)
    assert model_files(path) == (path,)
