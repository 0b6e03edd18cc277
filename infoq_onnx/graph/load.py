"""Read an ONNX file and check that it is a float model that onnxruntime can load."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnxruntime
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from infoq_onnx.errors import ModelError, about, setting
from infoq_onnx.graph.editing import opset_of, stamp_ir_version, to_array, walk
from infoq_onnx.graph.external import tensors_of
from infoq_onnx.graph.half_precision import to_float32
from infoq_onnx.graph.inference import require_inference
from infoq_onnx.graph.ort import ORT_ERRORS, first_line
from infoq_onnx.graph.session import open_session
from infoq_onnx.reporter import Reporter

OLDEST_OPSET = 7

_QUANTIZED = frozenset(
    [
        "BipolarQuant",
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "IntQuant",
        "MatMulInteger",
        "MatMulInteger16",
        "MatMulIntegerToFloat",
        "MatMulBnb4",
        "MatMulNBits",
        "QAttention",
        "QEmbedLayerNormalization",
        "QGemm",
        "Quant",
        "QuantizeLinear",
        "QuantizeWithOrder",
    ]
)
_TOO_LARGE = "is larger than 2 GiB with its weights, more than onnx can check; use a smaller model"

_MOST_NODES = 1_000_000
_LFS_POINTER = b"version https://git-lfs"
_LFS_ADVICE = "run git lfs pull"

QONNX_DOMAIN = "qonnx.custom_op.general"
QONNX = f"is a QONNX model, which onnxruntime does not run; give one made with {setting('file_format')} qdq"
NO_TEXT = "is damaged: a name in it is no text; download or export the model again"
NO_OUTPUTS = "has no outputs; export the model so that it returns its class scores"


def load_model(path: Path, reporter: Reporter | None = None) -> ModelProto:
    """Load and check a float model, including its external data.

    A model in half precision becomes float32. The IR version is lowered to the oldest one that supports the operator
    sets, because onnxruntime rejects IR versions newer than those it knows.

    Parameters
    ----------
    path : Path
        The .onnx file. External data is read from the same folder.
    reporter : Reporter or None
        Receives a note if the model is converted.

    Returns
    -------
    ModelProto
        The complete model, with opset 7 or newer and one float32 input. onnxruntime can load it.

    Raises
    ------
    ModelError
        The file cannot be read or fails a check. The message gives the reason and a remedy.
    """
    path = Path(path)
    model = _read(path)
    _check_version(path, model)
    _check_float(path, model)
    _check_functions(path, model)
    _load_external_data(path, model)
    # data that does not fit its type is found before it is converted
    _check_data(path, model)
    if to_float32(model) and reporter is not None:
        reporter.note(f"{path} is in half precision: it is converted to float32, inputs and outputs included")
    _check_ends(path, model.graph)
    with about(str(path)):
        require_inference(model)
    stamp_ir_version(model)
    _check_valid(path, model)
    return model


def read_any(path: Path) -> ModelProto:
    """Read any ONNX model, quantized or not, including its external data.

    Raises
    ------
    ModelError
        The file does not exist, cannot be read, or is not an ONNX model.
    """
    model = _read(Path(path))
    _load_external_data(Path(path), model)
    return model


def require_file(path: Path) -> None:
    """Check that a path is a regular file with content.

    Raises
    ------
    ModelError
        The path does not exist, or is a folder, a pipe or the like, or the file is empty.
    """
    if not os.path.exists(path):
        raise ModelError(f"no such file: {path}; give the path of an ONNX model")
    if not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "no regular file"
        raise ModelError(f"{path} is {what}; give the path of an ONNX model")
    if not os.path.getsize(path):
        raise ModelError(f"{path} is empty; download or export the model again")


def _read(path: Path) -> ModelProto:
    require_file(path)
    try:
        if path.stat().st_size > onnx.checker.MAXIMUM_PROTOBUF:
            raise ModelError(f"{path} {_TOO_LARGE}")
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    if content.startswith(_LFS_POINTER):
        raise ModelError(f"{path} is a git-lfs pointer and not the model itself; {_LFS_ADVICE}")
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        # every exporter writes the IR version first, as field 1: a file with this first byte is a damaged ONNX file
        if content[:1] == b"\x08":
            raise ModelError(f"{path} is truncated or damaged; download or export the model again") from error
        raise ModelError(f"{path} is not an ONNX model; give the path of one") from error
    if not model.ir_version and not model.opset_import:
        raise ModelError(f"{path} is not an ONNX model; give the path of one")
    if not model.HasField("graph"):
        raise ModelError(f"{path} is truncated or damaged: it has no graph; download or export the model again")
    if not model.opset_import:
        raise ModelError(f"{path} does not say which operator set it is of; download or export the model again")
    if not _is_text(model):
        raise ModelError(f"{path} {NO_TEXT}")
    if odd := next((name for name in _names(model.graph) if not name.isprintable()), None):
        raise ModelError(f"{path}: the name {odd!r} holds control characters; rename it")
    return model


def _names(graph: GraphProto) -> Iterator[str]:
    """Yield the names of all nodes and tensors, which are shown in tables."""
    for node in walk(graph.node):
        yield from (node.name, *node.input, *node.output)
    for value in (*graph.input, *graph.output, *graph.initializer):
        yield value.name


def _is_text(message: Message) -> bool:
    """Return whether every string in a message is valid UTF-8, which protobuf does not check when it parses."""
    for field, value in message.ListFields():
        values = [value] if isinstance(value, str | bytes | Message) else value
        if field.type == field.TYPE_MESSAGE and not all(map(_is_text, values)):
            return False
        if field.type == field.TYPE_STRING and not all(isinstance(text, str) for text in values):
            return False
    return True


def _check_version(path: Path, model: ModelProto) -> None:
    opset, newest = opset_of(model), onnx.defs.onnx_opset_version()
    if opset == 0:
        raise ModelError(f"{path} does not import ONNX's own operators; export the model with opset 13 or newer")
    if opset < OLDEST_OPSET:
        raise ModelError(f"{path} has opset {opset}, older than {OLDEST_OPSET}; export it with opset 13 or newer")
    if opset <= newest and not _onnxruntime_knows(opset):
        raise ModelError(
            f"{path} has opset {opset}, which the installed onnxruntime {onnxruntime.__version__} does not know; "
            "upgrade onnxruntime, or export the model with a lower opset"
        )
    if opset > newest:
        raise ModelError(
            f"{path} has opset {opset}, but the installed onnx {onnx.__version__} knows up to {newest}; upgrade onnx "
            "and onnxruntime, or export the model with a lower opset"
        )


def _onnxruntime_knows(opset: int) -> bool:
    """Return whether the installed onnxruntime supports an operator set version.

    onnxruntime does not report its newest operator set, so a model of one Identity node is loaded.
    """
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    stamp_ir_version(probe)
    try:
        open_session(probe, optimize=False)
    except ORT_ERRORS:
        return False
    return True


def _check_ends(path: Path, graph: GraphProto) -> None:
    if not graph.output:
        raise ModelError(f"{path} {NO_OUTPUTS}")
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = f" ({', '.join(value.name for value in inputs)})" if inputs else ""
        raise ModelError(
            f"{path} has {len(inputs) or 'no'} inputs{names}: only models with one input are supported; export the "
            "model with the image batch as its only input"
        )
    _check_input(path, inputs[0])


def _check_input(path: Path, value: ValueInfoProto) -> None:
    if not value.type.HasField("tensor_type"):
        raise ModelError(f"{path}: input {value.name!r} is not a tensor; export the model with a float32 input")
    kind = value.type.tensor_type.elem_type
    if kind != TensorProto.FLOAT:
        raise ModelError(
            f"{path}: input {value.name!r} is {_type_name(kind)}, not float32; export the model in float32, its "
            "weights included (in PyTorch: model.float())"
        )


def _type_name(kind: int) -> str:
    try:
        return str(TensorProto.DataType.Name(kind)).lower()
    except ValueError:
        return f"of an unknown type ({kind})"


def _check_float(path: Path, model: ModelProto) -> None:
    functions = (node for function in model.functions for node in walk(function.node))
    for node in (*walk(model.graph.node), *functions):
        if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear"):
            raise ModelError(f"{path} is already quantized (it has {node.op_type} nodes); give the float model")


def _check_functions(path: Path, model: ModelProto) -> None:
    """Refuse local functions that call themselves, or one another so often that no graph could hold their nodes."""
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    open_: set[tuple[str, str]] = set()

    def size(nodes: Iterable[NodeProto]) -> int:
        total = 0
        for node in walk(nodes):
            key = (node.domain, node.op_type)
            if key not in functions:
                total += 1
                continue
            if key in open_:
                raise ModelError(f"{path}: the local function {key[1]} calls itself; export the model without it")
            if key not in sizes:
                open_.add(key)
                sizes[key] = size(functions[key].node)
                open_.discard(key)
            total += sizes[key]
        return total

    try:
        found = size(model.graph.node)
    except RecursionError as error:
        raise ModelError(f"{path}: its local functions are nested too deeply; export it without them") from error
    if found > _MOST_NODES:
        raise ModelError(
            f"{path} has {found:,} nodes once its local functions are put in their places, more than {_MOST_NODES:,}; "
            "export it without them"
        )


def _load_external_data(path: Path, model: ModelProto) -> None:
    for tensor in tensors_of(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            _check_external(path, tensor)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"cannot read the weights that {path} keeps in another file: {first_line(error)}; put that file beside it"
        ) from error


def _check_external(path: Path, tensor: TensorProto) -> None:
    """Tell a file of external data that is cut off, or was never downloaded, from one that is missing."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file = path.parent / location
    try:
        if not location or not file.is_file():
            return
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(len(_LFS_POINTER))
        needed = int(entries.get("offset", 0)) + int(entries.get("length", 0))
    except (OSError, ValueError):
        # told by what reads it
        return
    if start == _LFS_POINTER:
        raise ModelError(f"{file}, the weights of {path}, is a git-lfs pointer and not the file itself; {_LFS_ADVICE}")
    if size < needed:
        raise ModelError(
            f"{file}, the weights of {path}, has {size:,} bytes, and tensor {tensor.name!r} needs {needed:,}: it is "
            "truncated; download or export it again"
        )


def _check_data(path: Path, model: ModelProto) -> None:
    """Make sure that every constant has the data that its type and shape need."""
    for tensor in tensors_of(model):
        try:
            to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(
                f"{path}: tensor {tensor.name!r} does not have the data its type and shape need ({first_line(error)}); "
                "export the model again"
            ) from error


def _check_valid(path: Path, model: ModelProto) -> None:
    if model.ByteSize() > onnx.checker.MAXIMUM_PROTOBUF:
        raise ModelError(f"{path} {_TOO_LARGE}")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"{path} is not a valid ONNX model: {first_line(error)}; export it again") from error
    try:
        open_session(model, optimize=False)
    except ORT_ERRORS as error:
        raise ModelError(
            f"onnxruntime cannot load {path}: {first_line(error)}; export the model with operators it knows"
        ) from error
