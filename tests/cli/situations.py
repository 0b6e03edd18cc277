"""What is wrong in each row of docs/errors.md, made in a folder: `SITUATIONS`."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from infoq_onnx import pipeline
from infoq_onnx.analyses import current
from infoq_onnx.emit.storage import STORAGES, Storage, Stored, packed
from infoq_onnx.quantize.codes import RoundedWeight
from infoq_onnx.simulate.rounding import sequential
from tests.cli.conftest import moved
from tests.cli.situations_finetune import FINETUNING
from tests.execute.workers import ends
from tests.networks import Builder, mlp, residual_convnet


@dataclass(frozen=True)
class Place:
    """Where a situation is made: a folder with model.onnx, data.npz and model.infoq."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    held: ExitStack
    """What is to stay open until the command has run."""


# -------------------------------------------------------------------------------------------------------------- models


def nothing(place: Place) -> None:
    """The command itself is what is wrong."""


def text_file(place: Place) -> None:
    (place.folder / "text.onnx").write_text("This is not a model.\n")


def truncated(place: Place) -> None:
    content = (place.folder / "model.onnx").read_bytes()
    (place.folder / "cut.onnx").write_bytes(content[: len(content) // 2])


def empty_file(place: Place) -> None:
    (place.folder / "empty.onnx").touch()


def relu_only(place: Place) -> None:
    b = Builder()
    onnx.save(b.model(b.relu("x", "relu"), (4,), (4,)), place.folder / "relu.onnx")


def two_inputs(place: Place) -> None:
    model = mlp()
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 12]))
    onnx.save(model, place.folder / "two.onnx")


def nan_weights(place: Place) -> None:
    model = mlp()
    weights = numpy_helper.to_array(model.graph.initializer[2]).copy()
    weights[0, 0] = np.nan
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(weights, model.graph.initializer[2].name))
    onnx.save(model, place.folder / "nan.onnx")


def vast(place: Place) -> None:
    b = Builder()
    y = b.gemm("x", "fc1", 12, 16)
    columns = b.op("Unsqueeze", [y, b.constant("axis", np.array([1]), np.int64)], "columns")
    many = b.op("Expand", [columns, b.constant("shape", np.array([1, 2**40, 16]), np.int64)], "many")
    y = b.op("ReduceMean", [many], "mean", axes=[1], keepdims=0)
    onnx.save(b.model(b.gemm(y, "fc2", 16, 4), (12,), (4,)), place.folder / "vast.onnx")


def changed(name: str, *operators: str, **attributes: object) -> Callable[[Place], None]:
    """Make an MLP with other operators behind its first layer."""

    def make(place: Place) -> None:
        b = Builder()
        y = b.gemm("x", "fc1", 12, 16)
        for operator in operators:
            node = {"Dropout": "drop", "BatchNormalization": "norm", "RandomNormalLike": "noise"}.get(operator, "seen")
            inputs = [y]
            if operator == "Dropout":
                inputs += [b.constant("ratio", 0.5), b.constant("training", True, np.bool_)]
            if operator == "BatchNormalization":
                inputs += [b.constant(f"norm{index}", np.ones(16)) for index in range(4)]
            outputs = ["norm_out", "mean", "variance"] if operator == "BatchNormalization" else None
            y = b.op(operator, inputs, node, outputs, **attributes)
        onnx.save(b.model(b.gemm(y, "fc2", 16, 4), (12,), (4,)), place.folder / name)

    return make


def in_float64(place: Place) -> None:
    model = mlp()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    onnx.save(model, place.folder / "double.onnx")


def classical(place: Place) -> None:
    weights = {"coefficients": [0.1] * 12, "intercepts": [0.0] * 3, "classlabels_ints": [0, 1, 2]}
    node = helper.make_node("LinearClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml", **weights)
    ends = [
        helper.make_tensor_value_info(end, TensorProto.FLOAT, ["n", size]) for end, size in (("x", 4), ("scores", 3))
    ]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=imports), place.folder / "linear.onnx")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


def pointer(place: Place) -> None:
    (place.folder / "pointer.onnx").write_bytes(POINTER)


def weights_outside(content: bytes) -> Callable[[Place], None]:
    """Make a model whose weights lie in another file, of this content."""

    def make(place: Place) -> None:
        path = place.folder / "outside.onnx"
        onnx.save(mlp(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
        (place.folder / "weights.bin").write_bytes(content)

    return make


def chosen(place: Place) -> None:
    model = mlp()
    scores = model.graph.node[-1].output[0] = "scores"
    model.graph.node.append(helper.make_node("ArgMax", [scores], ["logits"], axis=1, keepdims=0))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.INT64, ["batch"]))
    onnx.save(model, place.folder / "chosen.onnx")


def binary(place: Place) -> None:
    b = Builder()
    onnx.save(b.model(b.gemm("x", "fc", 4, 1), (4,), (1,)), place.folder / "binary.onnx")


def free_size(place: Place) -> None:
    model = residual_convnet(size=8, width=4)
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    onnx.save(model, place.folder / "free.onnx")


def segmentation(place: Place) -> None:
    b = Builder()
    onnx.save(b.model(b.conv("x", "conv", 3, 5), (3, 8, 8), (5, 8, 8)), place.folder / "masks.onnx")


def quantized(place: Place) -> None:
    b = Builder()
    scale, zero = b.constant("scale", 0.1), b.constant("zero", 0, np.uint8)
    codes = b.op("QuantizeLinear", ["x", scale, zero], "quantize")
    values = b.op("DequantizeLinear", [codes, scale, zero], "dequantize")
    onnx.save(b.model(b.gemm(values, "fc", 12, 4), (12,), (4,)), place.folder / "int8.onnx")


def other_input(place: Place) -> None:
    onnx.save(mlp(features=10), place.folder / "other.onnx")


def other_classes(place: Place) -> None:
    onnx.save(mlp(classes=7), place.folder / "other.onnx")


def overflowing(place: Place) -> None:
    b = Builder()
    huge = b.op("Mul", ["x", b.constant("huge", 3e38)], "scale_up")
    y = b.op("Sub", [b.op("Mul", [huge, huge], "square"), b.op("Mul", [huge, huge], "square_again")], "difference")
    onnx.save(b.model(b.gemm(y, "fc", 12, 4), (12,), (4,)), place.folder / "overflow.onnx")


# ---------------------------------------------------------------------------------------------------------------- data


def convnet(place: Place) -> None:
    onnx.save(residual_convnet(size=8, width=4), place.folder / "conv.onnx")


def images(place: Place, classes: int = 10, each: int = 2, side: int = 10) -> list[Path]:
    convnet(place)
    rng = np.random.default_rng(0)
    files = []
    for label in range(classes):
        (place.folder / f"images/{label}").mkdir(parents=True)
        for number in range(each):
            file = place.folder / f"images/{label}/{number}.jpg"
            Image.fromarray(rng.integers(0, 256, (side, 12, 3), dtype=np.uint8)).save(file)
            files.append(file)
    return files


def some_images(place: Place) -> None:
    images(place)


def small_images(place: Place) -> None:
    images(place, side=6)


def four_folders(place: Place) -> None:
    images(place, classes=4)


def nine_folders(place: Place) -> None:
    for folder in {file.parent for file in images(place, classes=9)}:
        folder.rename(folder.with_name(f"class {folder.name}"))


def corrupt_images(place: Place) -> None:
    for file in images(place)[:2]:
        file.write_bytes(b"no picture")


def empty_folder(place: Place) -> None:
    convnet(place)
    (place.folder / "empty").mkdir()


def list_with_a_gap(place: Place) -> None:
    convnet(place)
    (place.folder / "list.csv").write_text("gone.png,0\n")


def pipe(place: Place, name: str = "pipe.npz") -> None:
    os.mkfifo(place.folder / name)


def pipe_named_as_output(place: Place) -> None:
    pipe(place, "pipe.onnx")


def link_to_nowhere(place: Place) -> None:
    (place.folder / "link.onnx").symlink_to("nowhere.onnx")


def model_of_another_tool(place: Place) -> None:
    onnx.save(mlp(seed=2), place.folder / "theirs.onnx")


def json_of_another_tool(place: Place) -> None:
    (place.folder / "mine.json").write_text('{"important": true}')


def arrays(shape: tuple[int, ...], labels: int = 4, bad: int | None = None) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        if bad is not None:
            x[bad] = np.nan
        np.savez(place.folder / "other.npz", x=x, y=np.arange(len(x)) % labels)

    return make


def integers(place: Place) -> None:
    convnet(place)
    x = np.zeros((32, 3, 8, 8), np.int64)
    x[-1, -1, -1, -1] = 256
    np.savez(place.folder / "other.npz", x=x)


# ------------------------------------------------------------------------------------------------------------ analyses


def held_lock(place: Place) -> None:
    lock = place.held.enter_context((place.folder / "model.infoq" / ".lock").open("w"))
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.write("4711")
    lock.flush()


def killed_workers(place: Place) -> None:
    place.monkeypatch.setattr("infoq_onnx.execute.processes._begin", ends)


def without_ray(place: Place) -> None:
    place.monkeypatch.setitem(sys.modules, "ray", None)


def no_analysis(place: Place) -> None:
    shutil.rmtree(place.folder / "model.infoq")


def unfinished(place: Place) -> None:
    current(place.folder / "model.infoq").analysis.unlink()


def damaged(place: Place) -> None:
    path = current(place.folder / "model.infoq").analysis
    path.write_text(path.read_text()[:100])


def other_schema(place: Place) -> None:
    path = current(place.folder / "model.infoq").analysis
    path.write_text(re.sub(r'\n "schema": \d+', '\n "schema": 99', path.read_text()))


def other_field(place: Place) -> None:
    path = current(place.folder / "model.infoq").analysis
    path.write_text(path.read_text().replace('"seed"', '"sead"', 1))


def costs(name: str, row: str) -> Callable[[Place], None]:
    def prepare(place: Place) -> None:
        (place.folder / name).write_text(f"layer,w_bits,a_bits,cost\n{row}\n")

    return prepare


def without_information(place: Place) -> None:
    settings: dict[str, Any] = {"bits": (2, 4, 8), "trial_rounding": "nearest", "output": place.folder / "plain.infoq"}
    pipeline.analyze(place.folder / "model.onnx", place.folder / "data.npz", **settings)


def damaged_scores(place: Place) -> None:
    current(place.folder / "model.infoq").scores_by("kl-pooled").write_text("")


def with_analysis(place: Place, old: str, new: str) -> None:
    """As an analysis would be in which `new` stands for `old`."""
    folder = place.folder / "model.infoq"
    assert old in current(folder).analysis.read_text()
    moved(folder, old, new)


def other_layers(place: Place) -> None:
    with_analysis(place, '"macs": 192', '"macs": 191')


def moved_names(place: Place) -> None:
    with_analysis(place, '"classes_path": null', f'"classes_path": "{place.folder.resolve()}/names.txt"')


def damaged_ranges(place: Place) -> None:
    current(place.folder / "model.infoq").grids.write_bytes(b"")


def changed_model(place: Place) -> None:
    onnx.save(mlp(seed=1), place.folder / "model.onnx")


def moved_model(place: Place) -> None:
    (place.folder / "model.onnx").rename(place.folder / "elsewhere.onnx")


def damaged_name(place: Place) -> None:
    content = (place.folder / "model.onnx").read_bytes()
    (place.folder / "bytes.onnx").write_bytes(content.replace(b"Gemm", b"Gem\xff"))


def same_scores(place: Place) -> None:
    b = Builder()
    y = b.gemm("x", "fc1", 12, 16)
    y = b.op("Mul", [y, b.constant("nothing", 0.0)], "mul")
    onnx.save(b.model(b.gemm(y, "fc2", 16, 4), (12,), (4,)), place.folder / "constant.onnx")


def huge_values(place: Place) -> None:
    model = onnx.load(place.folder / "model.onnx")
    for tensor in model.graph.initializer:
        factor = {"fc1_w": 1e36, "fc1_b": 1e36, "fc2_w": 1e-36}.get(tensor.name, 1.0)
        scaled = (numpy_helper.to_array(tensor) * factor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
    onnx.save(model, place.folder / "huge.onnx")


def missing_ranges(place: Place) -> None:
    current(place.folder / "model.infoq").grids.unlink()


def folder_for_ranges(place: Place) -> None:
    missing_ranges(place)
    current(place.folder / "model.infoq").grids.mkdir()


def damaged_checksums(place: Place) -> None:
    path = current(place.folder / "model.infoq").checksums
    path.write_text(path.read_text().replace("ranges", "rangez"))


def other_model(place: Place) -> None:
    onnx.save(mlp(seed=1), place.folder / "other.onnx")


def moved_data(place: Place) -> None:
    (place.folder / "data.npz").rename(place.folder / "elsewhere.npz")


def folder_named_as_output(place: Place) -> None:
    (place.folder / "out.onnx").mkdir()


def memory_ends(place: Place) -> None:
    def round_layer(*_: object, **__: object) -> None:
        np.empty((2**50, 1))

    place.monkeypatch.setattr(sequential, "round_layer", round_layer)


def full_disk(place: Place) -> None:
    def fail(model: onnx.ModelProto, path: Path) -> None:
        Path(path).write_bytes(model.SerializeToString()[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place.monkeypatch.setattr(onnx, "save", fail)


def full_disk_for_json(place: Place) -> None:
    write = Path.write_text

    def fail(path: Path, text: str, encoding: str) -> int:
        write(path, text[:10], encoding=encoding)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place.monkeypatch.setattr(Path, "write_text", fail)


def disagreement(place: Place) -> None:
    def mixed_up(name: str, held: RoundedWeight, axis: int, opset: int) -> Stored:
        return packed(name, dataclasses.replace(held, codes=held.codes[::-1]), axis, opset)

    place.monkeypatch.setitem(STORAGES, "packed", Storage(mixed_up))


SITUATIONS: dict[str, Callable[[Place], None]] = {
    "the file does not exist": nothing,
    "it is a folder": nothing,
    "a text file is named .onnx": text_file,
    "the download broke off": truncated,
    "a byte of a name in it is damaged": damaged_name,
    "what it computes exceeds float32 when it is squared": huge_values,
    "it gives every image the same scores": same_scores,
    "the file is empty": empty_file,
    "nothing in it can be quantized": relu_only,
    "it has two inputs": two_inputs,
    "its weights are NaN": nan_weights,
    "it computes more than memory holds": vast,
    "memory ends while weights are rounded": memory_ends,
    "it computes NaN": overflowing,
    "its layers are in a domain of their own": classical,
    "it is a git-lfs pointer": pointer,
    "its weights lie in another file, which is a git-lfs pointer": weights_outside(POINTER),
    "its weights lie in another file, which is cut off": weights_outside(bytes(100)),
    "it gives the chosen class only": chosen,
    "it gives one score an image": binary,
    "there is no output of that name": nothing,
    "its input is float64": in_float64,
    "its image size is free": free_size,
    "it gives more than one score a class": segmentation,
    "it was exported in training mode": changed("trained.onnx", "Dropout"),
    "it normalises by the statistics of a batch": changed("norm.onnx", "BatchNormalization", training_mode=1),
    "it draws random numbers": changed("noisy.onnx", "RandomNormalLike"),
    "it looks at other images of the batch": changed("across.onnx", "Softmax", axis=0),
    "it is quantized already": quantized,
    "there is no such folder": nothing,
    "the folder is empty": empty_folder,
    "a class folder is missing": nine_folders,
    "more than 1 % of the images are corrupt": corrupt_images,
    "images, and no word on preprocessing": some_images,
    "images that are too small, and no resizing": small_images,
    "resizing to a size beyond memory": some_images,
    "images, and a model that takes none": four_folders,
    "arrays of another shape": arrays((32, 10)),
    "integers that are no pixels": integers,
    "NaN in an array": arrays((32, 12), bad=7),
    "a label out of range": arrays((32, 12), labels=6),
    "too few samples": arrays((8, 12)),
    "a list names a file that is gone": list_with_a_gap,
    "a pipe instead of a file": pipe,
    "no such file of class names": nothing,
    "a bit-width outside 2 … 8": nothing,
    "bit-widths that are no numbers": nothing,
    "an empty path": nothing,
    "8 bits only": nothing,
    "hardly any samples": nothing,
    "one projection": nothing,
    "too little memory for anything": nothing,
    "an unknown encoder": nothing,
    "a preset and parts of another recipe": some_images,
    "a preset for a model that takes no images": nothing,
    "parts of a recipe for a model that takes no images": nothing,
    "--calib is missing": nothing,
    "a command that does not exist": nothing,
    "the folder cannot be made": nothing,
    "processes that run trials are killed": killed_workers,
    "an address that is none": nothing,
    "no Ray cluster at the address": nothing,
    "Ray is not installed": without_ray,
    "the folder is in use": held_lock,
    "none in this folder": no_analysis,
    "none in the folder named": empty_folder,
    "it is not finished": unfinished,
    "it is damaged": damaged,
    "a newer version wrote it": other_schema,
    "it has a field that nobody knows": other_field,
    "another version saw other layers": other_layers,
    "its ranges are damaged": damaged_ranges,
    "the model has changed since": changed_model,
    "the model has moved": moved_model,
    "one of its files is missing": missing_ranges,
    "a folder lies in place of one of its files": folder_for_ranges,
    "its checksums are damaged": damaged_checksums,
    "another model than the analysed one is given": other_model,
    "images that are not where they are said to be": nothing,
    "the images have moved": moved_data,
    "the file of class names has moved": moved_names,
    "no budget": nothing,
    "a budget and --uniform": nothing,
    "--uniform and a pin": nothing,
    "uniform bits that were not analysed": nothing,
    "images for rounding that looks at none": nothing,
    "a budget of 0": nothing,
    "a negative budget": nothing,
    "a budget that is no number": nothing,
    "a budget below what 2 bits need": nothing,
    "two budgets, one of them out of reach": nothing,
    "a pin that takes too much": nothing,
    "a file that cannot be so small": nothing,
    "a table of costs that is not there": nothing,
    "a table with an unknown layer": costs("latency.csv", "fc9,8,8,1ms"),
    "a table with a cost that is none": costs("costs.csv", "fc1,8,8,soon"),
    "a pin on an unknown layer": nothing,
    "a pin without bits": nothing,
    "pins that contradict each other": nothing,
    "bits that were not analysed": nothing,
    "an unknown criterion": nothing,
    "an unknown criterion, and bits that need none": nothing,
    "a criterion whose measurements are missing": without_information,
    "scores that are damaged": damaged_scores,
    "an option that the criterion does not have": nothing,
    "a threshold that is no correlation": nothing,
    "scores of no analysis": empty_folder,
    "a negative weight of activations": nothing,
    "the name does not end in .onnx": nothing,
    "the name is that of the float model": nothing,
    "the name is that of a folder": folder_named_as_output,
    "a model of another tool has that name": model_of_another_tool,
    "a JSON file of another tool lies beside it": json_of_another_tool,
    "a pipe has that name": pipe_named_as_output,
    "a link to nowhere has that name": link_to_nowhere,
    "there is no such folder to write in": nothing,
    "the disk is full": full_disk,
    "the disk is full after the model": full_disk_for_json,
    "the model written does not compute what was simulated": disagreement,
    "an allocation that is not there": nothing,
    **FINETUNING,
    "no such model": nothing,
    "no model at all": text_file,
    "images, and a model that does not know its preprocessing": some_images,
    "models of different inputs": other_input,
    "models of different classes": other_classes,
    "the model computes NaN": overflowing,
}
