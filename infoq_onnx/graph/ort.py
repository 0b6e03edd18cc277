"""Run models in onnxruntime without graph optimisations, and shorten its error messages to one line."""

from __future__ import annotations

import re
import threading
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
"""Exceptions that onnxruntime raises. They have no common base class except Exception."""

NOT_ONNX: type[Exception] = state.InvalidProtobuf
"""The one of `ORT_ERRORS` that onnxruntime raises if a file is not a model."""
_FATAL_ONLY = 4
_CPP_PLACE = re.compile(r"^/\S+:\d+(: .*? failed: | .*?\) (?=[A-Z]))")
"""Prefix of some onnx and onnxruntime messages: source file, line, and signature or failed assertion."""


def run(model: ModelProto, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> list[Any]:
    """Run a model once, without graph optimisations.

    Parameters
    ----------
    model : the model
    feeds : input arrays by input name
    outputs : names of the outputs to return; None returns all outputs
    seconds : time limit; None: none

    Returns
    -------
    list of ndarray
        The outputs, in the order of `outputs`.

    Raises
    ------
    TimeoutError
        The time limit is exceeded.
    Exception
        One of `ORT_ERRORS`.
    """
    return run_session(open_session(model, optimize=False), feeds, outputs)


def run_session(
    session: Any,
    feeds: Mapping[str, NDArray[Any]],
    outputs: Sequence[str] | None = None,
    seconds: float | None = None,
) -> list[Any]:
    """Run an open session once. Errors are raised but not also logged.

    Parameters
    ----------
    session : an open onnxruntime session
    feeds : input arrays by input name
    outputs : names of the outputs to return; None returns all outputs
    seconds : time limit; None: none

    Returns
    -------
    list of ndarray
        The outputs, in the order of `outputs`.

    Raises
    ------
    TimeoutError
        The time limit is exceeded.
    Exception
        One of `ORT_ERRORS`.
    """
    options = onnxruntime.RunOptions()
    options.log_severity_level = _FATAL_ONLY
    arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
    names = None if outputs is None else list(outputs)
    if seconds is None:
        unlimited: list[Any] = session.run(names, arrays, options)
        return unlimited

    def stop() -> None:
        # onnxruntime looks at it between nodes
        options.terminate = True

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        results: list[Any] = session.run(names, arrays, options)
    except ORT_ERRORS as error:
        if options.terminate:
            raise TimeoutError(f"it runs for more than {seconds:g} seconds") from error
        raise
    finally:
        timer.cancel()
    return results


def first_line(error: Exception) -> str:
    """Return the first line of an onnx or onnxruntime error message, without prefixes and trailing punctuation."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    return _CPP_PLACE.sub("", text).rstrip(" .:")
