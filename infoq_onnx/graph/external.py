"""The files that a model lies in: the .onnx, and those beside it that hold tensors of its."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto

from infoq_onnx.files import sha256_of
from infoq_onnx.graph.editing import subgraphs, walk


def model_files(path: Path) -> tuple[Path, ...]:
    """Return the file of a model, then the files of external data that it names, sorted by name.

    A file that is no ONNX, as onnxruntime's own format, names none.

    Raises
    ------
    OSError
        The .onnx cannot be read.
    """
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError:
        return (path,)
    external = {
        entry.value
        for tensor in _tensors(model)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return (path, *(path.parent / location for location in sorted(external)))


def model_sha256(path: Path) -> str:
    """Hex SHA-256 of all that a model is: of the file's bytes, or where it has external data of all files' digests.

    Raises
    ------
    OSError
        One of the files cannot be read.
    """
    digests = [sha256_of(file) for file in model_files(path)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def model_bytes(path: Path) -> int:
    """Size of a model with its external data.

    Raises
    ------
    OSError
        One of the files is not there.
    """
    return sum(file.stat().st_size for file in model_files(path))


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in walk(nodes):
            for attribute in node.attribute:
                yield attribute.t
                yield from attribute.tensors
            for subgraph in subgraphs(node):
                yield from subgraph.initializer
