"""onnxruntime sessions: the one place that sets their options."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from infoq_onnx.errors import SettingsError

_CGROUPS = Path("/sys/fs/cgroup")
_CPU = "CPUExecutionProvider"
_SUFFIX = "ExecutionProvider"

_LARGE = 2**26
"""Bytes from which on a model is opened from a file."""

_NO_MEMORY = re.compile(r"failed to allocate memory for requested buffer of size \d+|bad.alloc\w*", re.IGNORECASE)


@dataclass(frozen=True)
class Runtime:
    """What sessions run on."""

    provider: str = "cpu"
    """See `provider_called`; the CPU does what the provider lacks."""
    threads: int | None = None
    """Of each session; None: as many as there are processors."""


_RUNTIME: ContextVar[Runtime] = ContextVar("runtime", default=Runtime())  # noqa: B039


def open_session(
    model: onnx.ModelProto | bytes | Path,
    *,
    integer_kernels: bool = True,
    optimize: bool = True,
    optimized: Path | None = None,
) -> ort.InferenceSession:
    """Open a session on the runtime in use: the CPU, except within `using`.

    Parameters
    ----------
    model : the model, its serialised bytes, or its file
    integer_kernels : let onnxruntime fuse Q/DQ pairs into integer kernels; False computes them in float, one by one
    optimize : apply onnxruntime's graph optimisations
    optimized : where to write the graph that they make of it

    Returns
    -------
    onnxruntime.InferenceSession

    Raises
    ------
    SettingsError
        onnxruntime has the provider in use, and cannot start it.
    MemoryError
        There is not enough memory for the model, or, when it is run, for what it computes.
    """
    options = session_options()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # a constant weight is laid out anew and its products are summed in another order than a computed one's
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not integer_kernels:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    provider = provider_called(_RUNTIME.get().provider)
    with _source(model) as source, _telling_of_memory():
        session = Session(source, options, providers=list(dict.fromkeys([provider, _CPU])))
    # onnxruntime falls back to the CPU without a word
    if provider not in session.get_providers():
        raise SettingsError(
            f"`provider` {provider.removesuffix(_SUFFIX)}: onnxruntime cannot start it; check its driver and libraries"
        )
    return session


class Session(ort.InferenceSession):  # type: ignore[misc]
    """One whose runs that lack memory end in a MemoryError."""

    def run(self, *arguments: Any, **named: Any) -> Any:
        """Run the model, see onnxruntime."""
        with _telling_of_memory():
            return super().run(*arguments, **named)


@contextlib.contextmanager
def _telling_of_memory() -> Iterator[None]:
    """Raise MemoryError for what onnxruntime raises where memory is short, which has no type of its own."""
    try:
        yield
    except Exception as error:
        found = _NO_MEMORY.search(str(error))
        if found is None:
            raise
        raise MemoryError(f"onnxruntime: {found[0]}") from error


@contextlib.contextmanager
def _source(model: onnx.ModelProto | bytes | Path) -> Iterator[bytes | Path]:
    """What onnxruntime opens: a session keeps the bytes that it was made of, so those of a large model go to a file."""
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    if isinstance(content, Path) or len(content) < _LARGE:
        yield content
        return
    with tempfile.TemporaryDirectory(prefix="infoq-onnx-") as folder:
        path = Path(folder) / "model.onnx"
        try:
            path.write_bytes(content)
        except OSError:
            # no room: rather more memory than no session
            yield content
            return
        del content
        yield path


@contextlib.contextmanager
def using(runtime: Runtime) -> Iterator[None]:
    """Open the sessions of a block on a runtime.

    Raises
    ------
    SettingsError
        This onnxruntime does not have its provider.
    """
    provider_called(runtime.provider)
    token = _RUNTIME.set(runtime)
    try:
        yield
    finally:
        _RUNTIME.reset(token)


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
            f"`provider` {name}: this onnxruntime has {', '.join(sorted(known))}; install one that has it, such as "
            "onnxruntime-gpu for cuda"
        )
    return found


def session_options() -> ort.SessionOptions:
    """Make the options that all sessions have."""
    _quieten()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    threads = _RUNTIME.get().threads or processors()
    if threads != os.cpu_count():
        # where only some processors may be used (taskset, a container), others' threads would spin
        options.intra_op_num_threads = threads
    return options


@functools.cache
def _quieten() -> None:
    """Report nothing to anybody, and say nothing of having failed to."""
    ort.disable_telemetry_events()
    ort.set_default_logger_severity(4)


def processors() -> int:
    """Count the processors that this process may use: those it may run on, as far as a container's quota goes."""
    allowed = (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1
    quota = _quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def _quota(root: Path = _CGROUPS) -> float | None:
    """Processors' worth of time that the control group grants, which containers set; None: no limit.

    Inside a container its own group is the root of what it sees: `cpu.max` holds quota and period in version 2,
    `cpu/cpu.cfs_*` in version 1, each in microseconds.
    """
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return None if int(quota) <= 0 else int(quota) / int(period)
    return None
