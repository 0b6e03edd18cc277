"""Files that make up a model: the .onnx file and its external data files."""

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
    """Return the path of a model file, followed by its external data files sorted by name.

    A file that is not ONNX protobuf, such as onnxruntime's own format, has no external data files.

    Raises
    ------
    OSError
        The .onnx file cannot be read.
    """
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError:
        return (path,)
    external = {
        entry.value
        for tensor in tensors_of(model)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return (path, *(path.parent / location for location in sorted(external)))


def model_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a model.

    Without external data, this is the digest of the file. With external data, it is the digest of all files' hex
    digests, joined by newlines in the order of `model_files`.

    Raises
    ------
    OSError
        One of the files cannot be read.
    """
    digests = [sha256_of(file) for file in model_files(path)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def model_bytes(path: Path) -> int:
    """Return the size of a model in bytes, including its external data.

    Raises
    ------
    OSError
        One of the files does not exist.
    """
    return sum(file.stat().st_size for file in model_files(path))


def tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every constant of a model: initializers, and tensors in attributes, of subgraphs and functions, too."""
    yield from model.graph.initializer
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in walk(nodes):
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
            for subgraph in subgraphs(node):
                yield from subgraph.initializer
