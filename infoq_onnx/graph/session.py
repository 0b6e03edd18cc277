"""Open onnxruntime sessions. All session options are set here."""

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

from infoq_onnx.errors import SettingsError, setting

_CGROUPS = Path("/sys/fs/cgroup")
_CPU = "CPUExecutionProvider"
_SUFFIX = "ExecutionProvider"

_LARGE = 2**26
"""Models of at least this many bytes are written to a file and opened from there."""

_NO_MEMORY = re.compile(r"failed to allocate memory for requested buffer of size \d+|bad.alloc\w*", re.IGNORECASE)


@dataclass(frozen=True)
class Runtime:
    """Execution provider and threads of a session."""

    provider: str = "cpu"
    """Name of the provider, see `provider_called`. Operators that it does not support run on the CPU."""
    threads: int | None = None
    """Threads of each session; None uses one per processor."""


_RUNTIME: ContextVar[Runtime] = ContextVar("runtime", default=Runtime())  # noqa: B039


def open_session(
    model: onnx.ModelProto | bytes | Path,
    *,
    integer_kernels: bool = True,
    optimize: bool = True,
    optimized: Path | None = None,
) -> ort.InferenceSession:
    """Open a session on the active runtime: the one set by `using`, or the CPU by default.

    Parameters
    ----------
    model : the model, its serialised bytes, or the path of its file
    integer_kernels : let onnxruntime fuse Q/DQ pairs into integer kernels; False computes node by node in float
    optimize : apply onnxruntime's graph optimisations
    optimized : path to write the optimised graph to; None does not write it

    Returns
    -------
    onnxruntime.InferenceSession
        Its `run` raises MemoryError if memory runs out.

    Raises
    ------
    SettingsError
        onnxruntime does not have the provider or cannot start it.
    MemoryError
        There is not enough memory for the model.
    """
    options = session_options()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # prepacking lays out constant weights differently, so their products are summed in another order than with
        # computed weights
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not integer_kernels:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    provider = provider_called(_RUNTIME.get().provider)
    with _source(model) as source, _telling_of_memory():
        session = Session(source, options, providers=list(dict.fromkeys([provider, _CPU])))
    # onnxruntime falls back to the CPU silently
    if provider not in session.get_providers():
        raise SettingsError(
            f"{setting('provider')} {provider.removesuffix(_SUFFIX)}: onnxruntime cannot start it; check its driver "
            "and libraries"
        )
    return session


class Session(ort.InferenceSession):  # type: ignore[misc]
    """An InferenceSession whose `run` raises MemoryError if memory runs out."""

    def run(self, *arguments: Any, **named: Any) -> Any:
        """Run the model, see `onnxruntime.InferenceSession.run`."""
        with _telling_of_memory():
            return super().run(*arguments, **named)


@contextlib.contextmanager
def _telling_of_memory() -> Iterator[None]:
    """Convert onnxruntime's out-of-memory errors, which have no type of their own, to MemoryError."""
    try:
        yield
    except Exception as error:
        found = _NO_MEMORY.search(str(error))
        if found is None:
            raise
        raise MemoryError(f"onnxruntime: {found[0]}") from error


@contextlib.contextmanager
def _source(model: onnx.ModelProto | bytes | Path) -> Iterator[bytes | Path]:
    """Yield the bytes or path from which onnxruntime opens a model.

    A session keeps the bytes it is opened from in memory, so large models are written to a temporary file.
    """
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    if isinstance(content, Path) or len(content) < _LARGE:
        yield content
        return
    with tempfile.TemporaryDirectory(prefix="infoq-onnx-") as folder:
        path = Path(folder) / "model.onnx"
        try:
            path.write_bytes(content)
        except OSError:
            # the disk is full: use more memory instead
            yield content
            return
        del content
        yield path


@contextlib.contextmanager
def using(runtime: Runtime) -> Iterator[None]:
    """Open all sessions within a `with` block on the given runtime.

    Raises
    ------
    SettingsError
        The installed onnxruntime does not have the runtime's provider.
    """
    provider_called(runtime.provider)
    token = _RUNTIME.set(runtime)
    try:
        yield
    finally:
        _RUNTIME.reset(token)


def provider_called(name: str) -> str:
    """Return onnxruntime's name of a provider, for example CUDAExecutionProvider for "cuda".

    The full name is also accepted; case is ignored.

    Raises
    ------
    SettingsError
        The installed onnxruntime does not have the provider.
    """
    known: dict[str, str] = {
        provider.removesuffix(_SUFFIX).lower(): provider for provider in ort.get_available_providers()
    }
    found = known.get(name.lower().removesuffix(_SUFFIX.lower()))
    if found is None:
        raise SettingsError(
            f"{setting('provider')} {name or repr(name)}: this onnxruntime has {', '.join(sorted(known))}; install one "
            "that has it, such as onnxruntime-gpu for cuda"
        )
    return found


def session_options() -> ort.SessionOptions:
    """Return the options common to all sessions."""
    _quieten()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    threads = _RUNTIME.get().threads or processors()
    if threads != os.cpu_count():
        # if the process may use only some processors (taskset, a container), surplus threads would spin
        options.intra_op_num_threads = threads
    return options


@functools.cache
def _quieten() -> None:
    """Disable onnxruntime's telemetry and log only fatal errors."""
    ort.disable_telemetry_events()
    ort.set_default_logger_severity(4)


def processors() -> int:
    """Return the number of processors that this process may use, limited by CPU affinity and by a container's quota."""
    allowed = (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1
    quota = _quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def _quota(root: Path = _CGROUPS) -> float | None:
    """Return the CPU quota of the control group in processors; None if there is no limit. Containers set this quota.

    Inside a container, the container's own group is the root of the visible hierarchy. Quota and period, in
    microseconds, are in `cpu.max` (cgroup version 2) or `cpu/cpu.cfs_*` (version 1).
    """
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return None if int(quota) <= 0 else int(quota) / int(period)
    return None
