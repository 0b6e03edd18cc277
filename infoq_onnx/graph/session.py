"""onnxruntime sessions: the one place that sets their options."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime as ort

from infoq_onnx.errors import SettingsError

# nothing is reported to anybody, and nothing is said of having failed to
ort.disable_telemetry_events()
ort.set_default_logger_severity(4)

_CPU = "CPUExecutionProvider"
_SUFFIX = "ExecutionProvider"

_threads: int | None = None
"""Of each session; None for as many as there are processors."""
_provider = _CPU
"""Of each session; what it lacks is done by the CPU's."""


def open_session(
    model: onnx.ModelProto | bytes | Path, *, integer_kernels: bool = True, optimize: bool = True
) -> ort.InferenceSession:
    """Open a session with the provider in use, which is the CPU's but within `running_on`.

    Parameters
    ----------
    model : the model, its serialised bytes, or its file
    integer_kernels : let onnxruntime fuse Q/DQ pairs into integer kernels; False computes them in float, one by one
    optimize : apply onnxruntime's graph optimisations

    Returns
    -------
    onnxruntime.InferenceSession

    Raises
    ------
    SettingsError
        onnxruntime has the provider in use, and cannot start it.
    """
    options = session_options()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # a constant weight is laid out anew and its products are summed in another order than a computed one's
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not integer_kernels:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    session = ort.InferenceSession(source, options, providers=list(dict.fromkeys([_provider, _CPU])))
    # onnxruntime falls back to the CPU without a word
    if _provider not in session.get_providers():
        raise SettingsError(
            f"--provider {_provider.removesuffix(_SUFFIX)}: onnxruntime cannot start it; check its driver and libraries"
        )
    return session


def run_on(name: str) -> None:
    """Let the sessions that this process opens from now on run on a provider, see `provider_called`."""
    global _provider
    _provider = provider_called(name)


@contextlib.contextmanager
def running_on(name: str) -> Iterator[None]:
    """Let the sessions that are opened in the block run on a provider, see `provider_called`."""
    before = _provider
    run_on(name)
    try:
        yield
    finally:
        run_on(before)


def provider_called(name: str) -> str:
    """Find onnxruntime's name of a provider: CUDAExecutionProvider for cuda, or for that name itself.

    Raises
    ------
    SettingsError
        This onnxruntime does not have it.
    """
    known: dict[str, str] = {
        provider.removesuffix(_SUFFIX).lower(): provider for provider in ort.get_available_providers()
    }
    found = known.get(name.lower().removesuffix(_SUFFIX.lower()))
    if found is None:
        raise SettingsError(
            f"--provider {name}: this onnxruntime has {', '.join(sorted(known))}; install one that has it, such as "
            "onnxruntime-gpu for cuda"
        )
    return found


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
