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
from infoq_onnx.graph.normalize import normalize
from infoq_onnx.graph.ort import run
from tests.graph.compare import assert_same_outputs
from tests.graph.passes.test_upgrade_opset import old_network
from tests.networks import Builder, mlp, residual_convnet
from tests.pipeline.cases import Listener


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


def _weight_of_type(kind: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        model.graph.initializer[2].data_type = kind

    return change


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
    "unknown type": (_element_type(99), ("input 'x' is of an unknown type (99)",)),
    "type -1": (_element_type(-1), ("input 'x' is of an unknown type (-1)",)),
    "integer": (_element_type(TensorProto.UINT8), ("input 'x' is uint8, not float32",)),
    "sequence": (_sequence, ("input 'x' is not a tensor",)),
    "short data": (_short_weight, ("'fc2_w' does not have the data its type and shape need",)),
    "data of an unknown type": (_weight_of_type(99), ("'fc2_w' does not have the data its type and shape need",)),
    "data of no type": (_weight_of_type(0), ("'fc2_w' does not have the data its type and shape need",)),
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


def test_constants_other_than_weights_may_be_infinite(tmp_path: Path) -> None:
    """As an additive attention mask is; weights are looked at when it is known which tensors they are."""
    b = Builder()
    y = b.op("Softmax", [b.op("Add", [b.gemm("x", "fc", 4, 3), b.constant("mask", [0, 0, -np.inf])], "masked")], "end")
    load_model(save(tmp_path, b.model(y, (4,), (3,))))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("behind_casts", [True, False])
def test_half_precision_becomes_float32(tmp_path: Path, kind: int, behind_casts: bool) -> None:
    weight = helper.make_tensor("w", kind, (3, 4), np.random.default_rng(0).standard_normal(12).astype(np.float32))
    ends = TensorProto.FLOAT if behind_casts else kind
    names = ("a", "b") if behind_casts else ("x", "y")
    nodes = [helper.make_node("Gemm", [names[0], "w"], [names[1]], "fc", transB=1)]
    if behind_casts:
        nodes.insert(0, helper.make_node("Cast", ["x"], ["a"], to=kind))
        nodes.append(helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT))
    inputs, outputs = ([helper.make_tensor_value_info(n, ends, ["n", size])] for n, size in (("x", 4), ("y", 3)))
    model = helper.make_model(
        helper.make_graph(nodes, "half", inputs, outputs, [weight]), opset_imports=[helper.make_opsetid("", 17)]
    )
    listener = Listener()
    loaded = load_model(save(tmp_path, model), listener)
    assert [note for note in listener.notes if "half precision" in note and "float32" in note]
    normal = normalize(loaded)
    assert [node.op_type for node in normal.graph.node] == ["Gemm"]
    x = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    expected = x @ numpy_helper.to_array(weight).astype(np.float32).T
    np.testing.assert_allclose(run(normal, {"x": x})[0], expected, rtol=1e-5, atol=1e-6)


def test_float32_is_left_alone(tmp_path: Path) -> None:
    listener = Listener()
    load_model(save(tmp_path, mlp()), listener)
    assert listener.notes == []


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(LFS)
    refuse(tmp_path / "model.onnx", "is a git-lfs pointer", "git lfs pull")


@pytest.mark.parametrize(
    ("content", "words"),
    [(LFS, ("git-lfs pointer", "git lfs pull")), (b"\0" * 100, ("has 100 bytes", "truncated", "download"))],
    ids=["pointer", "truncated"],
)
def test_weights_beside_the_file_that_are_not_whole(tmp_path: Path, content: bytes, words: tuple[str, ...]) -> None:
    model, path = mlp(), tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    load_model(path)
    (tmp_path / "weights.bin").write_bytes(content)
    refuse(path, "weights.bin", *words)


def test_real_models_load(shared: Path) -> None:
    for path in sorted((shared / "models").glob("*.onnx")):
        assert len(load_model(path).graph.input) == 1


def functions(calls: list[list[str]]) -> ModelProto:
    """A model whose function F0 calls those named first in `calls`, and so on."""
    model = mlp()
    for index, names in enumerate(calls):
        inner = ["a", *(f"t{step}" for step in range(len(names) - 1)), "b"]
        nodes = [
            helper.make_node(name, [inner[step]], [inner[step + 1]], domain="" if name == "Relu" else "local")
            for step, name in enumerate(names)
        ]
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
        model.functions.append(helper.make_function("local", f"F{index}", ["a"], ["b"], nodes, imports))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "F0", "local"
    return model


@pytest.mark.parametrize(
    ("calls", "told"),
    [
        ([["F0"]], "the local function F0 calls itself"),
        ([["F1"], ["F0"]], "the local function F0 calls itself"),
        ([*([f"F{index + 1}"] * 2 for index in range(24)), ["Relu"]], "has 16,777,220 nodes"),
    ],
    ids=["itself", "one another", "doubling"],
)
def test_functions_without_end(tmp_path: Path, calls: list[list[str]], told: str) -> None:
    refuse(save(tmp_path, functions(calls)), told)


def test_functions_that_end(tmp_path: Path) -> None:
    assert load_model(save(tmp_path, functions([["F1", "F1"], ["Relu"]])))
