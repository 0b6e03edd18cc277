"""Running small graphs in onnxruntime, node by node as written, and its errors in one line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime.capi import onnxruntime_pybind11_state as state

from infoq_onnx.graph.session import open_session

ORT_ERRORS: tuple[type[Exception], ...] = (
    state.EPFail,
    state.EngineError,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoModel,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
)
"""What onnxruntime raises; its exceptions have no common base but Exception."""

NOT_ONNX: type[Exception] = state.InvalidProtobuf
"""The one among them that says that a file is no model."""
_FATAL_ONLY = 4
_CPP_PLACE = re.compile(r"^/\S+:\d+(: .*? failed: | .*?\) (?=[A-Z]))")
"""Source file, line and signature or assertion, which onnx and onnxruntime put in front of some messages."""


def run(model: ModelProto, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> list[Any]:
    """Run a model once and return the named outputs, or all of them.

    Raises
    ------
    Exception
        One of `ORT_ERRORS`.
    """
    return run_session(open_session(model, optimize=False), feeds, outputs)


def run_session(session: Any, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> list[Any]:
    """Run an open session once; errors are raised, not printed as well.

    Raises
    ------
    Exception
        One of `ORT_ERRORS`.
    """
    options = onnxruntime.RunOptions()
    options.log_severity_level = _FATAL_ONLY
    arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
    results: list[Any] = session.run(None if outputs is None else list(outputs), arrays, options)
    return results


def first_line(error: Exception) -> str:
    """Reduce a message of onnx or onnxruntime to its first line, without onnxruntime's prefix or final stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    return _CPP_PLACE.sub("", text).rstrip(" .:")
