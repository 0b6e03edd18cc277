"""What load_model accepts and refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from infoq_onnx.errors import ModelError
from infoq_onnx.graph import load
from infoq_onnx.graph.load import load_model
from tests.graph.compare import assert_same_outputs
from tests.graph.passes.test_upgrade_opset import old_network
from tests.networks import Builder, mlp, residual_convnet


def refuse(path: Path, *words: str) -> None:
    """The file is refused in one line that holds every word."""
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


def save(folder: Path, model: ModelProto | bytes, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


@pytest.mark.parametrize("opset", [7, 11, 13, 17, 21])
def test_loads(tmp_path: Path, opset: int) -> None:
    model = old_network(opset) if opset < 13 else mlp()
    model.opset_import[0].version = opset
    assert_same_outputs(model, load_model(save(tmp_path, model)))


def test_ir_version_beyond_onnxruntime_is_lowered(tmp_path: Path) -> None:
    model = mlp()
    model.ir_version = onnx.IR_VERSION
    assert load_model(save(tmp_path, model)).ir_version == 8


def test_external_data(tmp_path: Path) -> None:
    model = residual_convnet()
    path = tmp_path / "model.onnx"
    copy = ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(copy, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert_same_outputs(model, load_model(path))

    content = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(content[: len(content) // 2])
    refuse(path)
    (tmp_path / "weights.bin").unlink()
    refuse(path, "keeps in another file", "put that file beside it")


def test_initializers_among_the_inputs_do_not_count(tmp_path: Path) -> None:
    model = mlp()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.ir_version = 3
    load_model(save(tmp_path, model))


def test_missing_folder_and_empty(tmp_path: Path) -> None:
    refuse(tmp_path / "none.onnx", "no such file")
    refuse(tmp_path, "is a folder")
    refuse(save(tmp_path, b""), "is empty")


@pytest.mark.parametrize(
    "content", [b"hello, world\n" * 20, b"\x89PNG\r\n\x1a\n" + bytes(100), b"{}", b"\x00" * 64, b"P"]
)
def test_not_onnx(tmp_path: Path, content: bytes) -> None:
    refuse(save(tmp_path, content), "is not an ONNX model")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.999])
def test_truncated(tmp_path: Path, share: float) -> None:
    content = residual_convnet().SerializeToString()
    refuse(save(tmp_path, content[: int(share * len(content))]), "truncated or damaged", "again")


def test_cut_off_before_the_graph(tmp_path: Path) -> None:
    model = mlp()
    model.ClearField("graph")
    refuse(save(tmp_path, model), "has no graph")


@pytest.mark.parametrize(("opset", "words"), [(6, "older than 7"), (99, "knows up to")])
def test_opset_out_of_range(tmp_path: Path, opset: int, words: str) -> None:
    model = mlp()
    model.opset_import[0].version = opset
    refuse(save(tmp_path, model), f"opset {opset}", words)


def test_an_opset_that_onnx_knows_and_onnxruntime_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which that is changes with their releases."""
    monkeypatch.setattr(load, "_onnxruntime_knows", lambda _: False)
    model = mlp()
    refuse(save(tmp_path, model), f"opset {model.opset_import[0].version}", "does not know")


def test_only_foreign_operators(tmp_path: Path) -> None:
    model = mlp()
    model.opset_import[0].domain = "com.example"
    refuse(save(tmp_path, model), "does not import ONNX's own operators")


def _without_outputs(model: ModelProto) -> None:
    del model.graph.output[:]


def _without_inputs(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 12), np.float32), "x"))


def _two_inputs(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))


def _element_type(kind: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        model.graph.input[0].type.tensor_type.elem_type = kind

    return change


def _sequence(model: ModelProto) -> None:
    model.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None))


def _weight(value: float) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        weight = numpy_helper.to_array(model.graph.initializer[2]).copy()
        weight[1, 1] = value
        model.graph.initializer[2].CopyFrom(numpy_helper.from_array(weight, "fc2_w"))

    return change


def _short_weight(model: ModelProto) -> None:
    model.graph.initializer[2].raw_data = model.graph.initializer[2].raw_data[:-4]


def _operator(op_type: str, domain: str = "") -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        model.graph.node[1].op_type, model.graph.node[1].domain = op_type, domain
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))

    return change


def _wrong_shape(model: ModelProto) -> None:
    model.graph.node[0].attribute[0].i = 0


def _named(name: str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        model.graph.node[0].name = name

    return change


def _unsorted(model: ModelProto) -> None:
    nodes = [*model.graph.node][::-1]
    copies = [ModelProto().graph.node.add() for _ in nodes]
    for copy, node in zip(copies, nodes, strict=True):
        copy.CopyFrom(node)
    del model.graph.node[:]
    model.graph.node.extend(copies)


REFUSALS: dict[str, tuple[Callable[[ModelProto], None], tuple[str, ...]]] = {
    "no outputs": (_without_outputs, ("has no outputs",)),
    "no inputs": (_without_inputs, ("has no inputs",)),
    "two inputs": (_two_inputs, ("2 inputs (x, mask): only models with one input are supported",)),
    "float16": (_element_type(TensorProto.FLOAT16), ("half-precision", "float16", "float32")),
    "bfloat16": (_element_type(TensorProto.BFLOAT16), ("half-precision", "bfloat16")),
    "integer": (_element_type(TensorProto.UINT8), ("input 'x' is uint8, not float32",)),
    "sequence": (_sequence, ("input 'x' is not a tensor",)),
    "NaN": (_weight(np.nan), ("'fc2_w' has NaN values",)),
    "infinity": (_weight(-np.inf), ("'fc2_w' has infinite values",)),
    "short data": (_short_weight, ("'fc2_w' does not have the data its shape asks for",)),
    "QuantizeLinear": (_operator("QuantizeLinear"), ("already quantized", "QuantizeLinear", "give the float model")),
    "QLinearConv": (_operator("QLinearConv"), ("already quantized",)),
    "QONNX": (_operator("Quant", "qonnx.custom_op.general"), ("already quantized",)),
    "unknown operator": (_operator("Rellu"), ("not a valid ONNX model", "Rellu")),
    "custom operator": (_operator("Foo", "com.example"), ("onnxruntime cannot load", "com.example:Foo")),
    "wrong shape": (_wrong_shape, ("not a valid ONNX model", "Gemm")),
    "escape": (_named("\x1b[31mred"), (r"the name '\x1b[31mred' holds control characters",)),
    "new line": (_named("two\nlines"), (r"'two\nlines' holds control characters",)),
    "unsorted": (_unsorted, ("not a valid ONNX model", "topologically sorted")),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(tmp_path: Path, case: str) -> None:
    change, words = REFUSALS[case]
    model = mlp()
    change(model)
    refuse(save(tmp_path, model), *words)


def test_infinite_bounds_are_fine(tmp_path: Path) -> None:
    b = Builder()
    y = b.op("Clip", [b.gemm("x", "fc", 4, 3), b.constant("low", 0.0), b.constant("high", np.inf)], "clip")
    load_model(save(tmp_path, b.model(y, (4,), (3,))))


def test_nan_inside_a_subgraph(tmp_path: Path) -> None:
    b = Builder()
    hidden = b.gemm("x", "fc", 4, 3)
    end = helper.make_tensor_value_info("then_out", TensorProto.FLOAT, None)
    bad = numpy_helper.from_array(np.full(3, np.nan, np.float32), "inner")
    branch = helper.make_graph([helper.make_node("Add", [hidden, "inner"], ["then_out"])], "then", [], [end], [bad])
    y = b.op("If", [b.constant("condition", True, bool)], "if", then_branch=branch, else_branch=branch)
    refuse(save(tmp_path, b.model(y, (4,), (3,))), "'inner' has NaN")


def test_real_models_load(shared: Path) -> None:
    for path in sorted((shared / "models").glob("*.onnx")):
        assert len(load_model(path).graph.input) == 1
