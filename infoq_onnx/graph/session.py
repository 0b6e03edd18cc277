"""onnxruntime sessions: the one place that sets their options."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnxruntime as ort

# nothing is reported to anybody, and nothing is said of having failed to
ort.disable_telemetry_events()
ort.set_default_logger_severity(4)

_threads: int | None = None
"""Of each session; None for as many as there are processors."""


def open_session(
    model: onnx.ModelProto | bytes | Path, *, integer_kernels: bool = True, optimize: bool = True
) -> ort.InferenceSession:
    """Open a CPU session.

    Parameters
    ----------
    model : the model, its serialised bytes, or its file
    integer_kernels : let onnxruntime fuse Q/DQ pairs into integer kernels; False computes them in float, one by one
    optimize : apply onnxruntime's graph optimisations

    Returns
    -------
    onnxruntime.InferenceSession
    """
    options = session_options()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # a constant weight is laid out anew and its products are summed in another order than a computed one's
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not integer_kernels:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def session_options() -> ort.SessionOptions:
    """Make the options that all sessions have."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    threads = _threads or processors()
    if threads != os.cpu_count():
        # where only some processors may be used (taskset, a container), others' threads would spin
        options.intra_op_num_threads = threads
    return options


def processors() -> int:
    """Count the processors that this process may use."""
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1


def limit_threads(count: int) -> None:
    """Let the sessions that this process opens from now on use so many threads each."""
    global _threads
    _threads = count
