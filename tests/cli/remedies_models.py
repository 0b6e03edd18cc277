"""The remedies for models, followed: `MODELS`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable

import onnx
from onnx import helper
from onnxruntime.tools import make_dynamic_shape_fixed

from tests.cli.remedies_data import QUICK, told
from tests.cli.situations import Place
from tests.networks import Builder, mlp

ANALYZE = f"--calib data.npz -o new.infoq {QUICK}"


def given_the_model(command: str = "inspect model.onnx") -> Callable[[Place], str]:
    """The command gets the path of a model, or another option."""
    return lambda _: f"infoq-onnx {command}"


def exported_again(
    name: str, command: str = "inspect", make: Callable[[], onnx.ModelProto] = mlp
) -> Callable[[Place], str]:
    """The model is exported, or downloaded, again, without what the message names."""

    def follow(place: Place) -> str:
        onnx.save(make(), place.folder / name)
        return f"infoq-onnx {command} {name}{f' {ANALYZE}' * (command == 'analyze')}"

    return follow


def changed(name: str, change: Callable[[onnx.ModelProto], object], command: str = "inspect") -> Callable[[Place], str]:
    """What the message names is changed in the model, and nothing else."""

    def follow(place: Place) -> str:
        model = onnx.load(place.folder / name)
        change(model)
        onnx.save(model, place.folder / name)
        return f"infoq-onnx {command} {name}{f' {ANALYZE}' * (command == 'analyze')}"

    return follow


def node_of(model: onnx.ModelProto, operator: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == operator)


def without(operator: str) -> Callable[[onnx.ModelProto], None]:
    """A node that hands its input on is taken out."""

    def change(model: onnx.ModelProto) -> None:
        gone = node_of(model, operator)
        model.graph.node.remove(gone)
        for node in model.graph.node:
            node.input[:] = [gone.input[0] if name == gone.output[0] else name for name in node.input]

    return change


def without_argmax(model: onnx.ModelProto) -> None:
    gone = node_of(model, "ArgMax")
    model.graph.node.remove(gone)
    del model.graph.output[:]
    scores = helper.make_tensor_value_info(gone.input[0], onnx.TensorProto.FLOAT, ["batch", 4])
    model.graph.output.append(scores)


def with_both_scores(model: onnx.ModelProto) -> None:
    """The graph of torch.cat([torch.zeros_like(z), z], dim=1)."""
    node_of(model, "Gemm").output[0] = "z"
    model.graph.node.append(helper.make_node("Sub", ["z", "z"], ["zeros"]))
    model.graph.node.append(helper.make_node("Concat", ["zeros", "z"], ["logits"], axis=1))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2


def pooled(model: onnx.ModelProto) -> None:
    """One score a class: the mean over the image."""
    node_of(model, "Conv").output[0] = "masks"
    model.graph.node.append(helper.make_node("ReduceMean", ["masks"], ["logits"], axes=[2, 3], keepdims=0))
    del model.graph.output[0].type.tensor_type.shape.dim[2:]


def inferring(model: onnx.ModelProto) -> None:
    """As exported for inference: the statistics of training, and one output."""
    node = node_of(model, "BatchNormalization")
    del node.output[1:]
    next(one for one in node.attribute if one.name == "training_mode").i = 0


def without_mask(model: onnx.ModelProto) -> None:
    del model.graph.input[1]


def along_classes(model: onnx.ModelProto) -> None:
    next(one for one in node_of(model, "Softmax").attribute if one.name == "axis").i = 1


def standard_operators() -> onnx.ModelProto:
    b = Builder()
    return b.model(b.gemm("x", "fc", 4, 3), (4,), (3,))


def weights_beside_it(place: Place) -> str:
    """What git lfs pull, or the download, brings."""
    path, weights = place.folder / "outside.onnx", "weights.bin"
    (place.folder / weights).unlink()
    onnx.save(mlp(), path, save_as_external_data=True, location=weights, size_threshold=0)
    return "infoq-onnx inspect outside.onnx"


def within_float32(place: Place) -> str:
    """A factor of a preprocessing is what makes the values that large."""
    b = Builder()
    y = b.op("Mul", ["x", b.constant("huge", 3.0)], "scale_up")
    onnx.save(b.model(b.gemm(y, "fc", 12, 4), (12,), (4,)), place.folder / "overflow.onnx")
    return f"infoq-onnx analyze overflow.onnx {ANALYZE}"


def fixed_size(place: Place) -> str:
    """Run the command of the message, with the size of the image in place of the example's."""
    command = re.search(r"make_dynamic_shape_fixed (.*)", told("infoq-onnx inspect free.onnx"))
    assert command is not None
    filled = command[1].replace("1,3,224,224", "1,3,8,8").replace("MODEL", "free.onnx").replace("FIXED", "fixed.onnx")
    place.monkeypatch.setattr(sys, "argv", ["make_dynamic_shape_fixed", *shlex.split(filled)])
    make_dynamic_shape_fixed.make_dynamic_shape_fixed_helper()
    return "infoq-onnx inspect fixed.onnx"


MODELS: dict[str, Callable[[Place], str]] = {
    "the file does not exist": given_the_model(),
    "it is a folder": given_the_model(),
    "a text file is named .onnx": given_the_model(),
    "the download broke off": exported_again("cut.onnx"),
    "a byte of a name in it is damaged": exported_again("bytes.onnx"),
    "the file is empty": exported_again("empty.onnx"),
    "nothing in it can be quantized": given_the_model(),
    "it has two inputs": changed("two.onnx", without_mask),
    "its weights are NaN": exported_again("nan.onnx", "analyze"),
    "it computes NaN": within_float32,
    "it gives every image the same scores": exported_again("constant.onnx", "analyze"),
    "what it computes exceeds float32 when it is squared": given_the_model(
        f"analyze huge.onnx {ANALYZE} --trial-rounding nearest"
    ),
    "its layers are in a domain of their own": exported_again("linear.onnx", make=standard_operators),
    "it is a git-lfs pointer": exported_again("pointer.onnx"),
    "its weights lie in another file, which is a git-lfs pointer": weights_beside_it,
    "its weights lie in another file, which is cut off": weights_beside_it,
    "it gives the chosen class only": changed("chosen.onnx", without_argmax),
    "it gives one score an image": changed("binary.onnx", with_both_scores),
    "there is no output of that name": given_the_model("inspect model.onnx --logits logits"),
    "its input is float64": exported_again("double.onnx"),
    "its image size is free": fixed_size,
    "it gives more than one score a class": changed("masks.onnx", pooled),
    "it was exported in training mode": changed("trained.onnx", without("Dropout")),
    "it normalises by the statistics of a batch": changed("norm.onnx", inferring),
    "it draws random numbers": changed("noisy.onnx", without("RandomNormalLike"), "analyze"),
    "it looks at other images of the batch": changed("across.onnx", along_classes, "analyze"),
    "it computes more than memory holds": exported_again("vast.onnx"),
    "it is quantized already": given_the_model(f"analyze model.onnx {ANALYZE}"),
}
