"""How kernels are compiled: at their first call, parallel over projections, kept on disk where that is possible."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit, set_num_threads
from numba.core import config

F = TypeVar("F", bound=Callable[..., Any])


def _cache_folder() -> str:
    """Folder that machine code is kept in; empty where the user has none."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        # no HOME and no entry in the list of users, as in some containers
        return ""
    return str(caches / "infoq-onnx")


# By default numba writes machine code beside the source. In an installed package those files outlive an uninstall, and
# the folder that is left hides a later editable install: they belong into the user's cache.
if not config.CACHE_DIR:  # type: ignore[attr-defined]
    config.CACHE_DIR = _cache_folder()  # type: ignore[attr-defined]

# numba's workqueue threading layer, the only one on some machines, ends the process when two Python threads enter
# parallel kernels at once. A kernel uses every core by itself, so nothing is lost by taking turns.
_TURN = threading.Lock()


def compiled(function: F, *, parallel: bool = False) -> F:
    """Compile `function` with numba when it is first called; it then runs without the interpreter lock."""
    keep = bool(config.CACHE_DIR)  # type: ignore[attr-defined]
    try:
        return cast(F, njit(nogil=True, parallel=parallel, cache=keep)(function))
    except RuntimeError:
        # numba found no folder it may write machine code to (home and install are read-only): compile in every process
        return cast(F, njit(nogil=True, parallel=parallel)(function))


def compiled_parallel(function: F) -> F:
    """Compile `function`, whose `prange` loop runs on numba's threads, and let one caller in at a time."""
    kernel = compiled(function, parallel=True)

    @functools.wraps(function)
    def in_turn(*arguments: Any) -> Any:
        with _TURN:
            return kernel(*arguments)

    return cast(F, in_turn)


def limit_threads(count: int) -> None:
    """Let the kernels that this thread calls use so many threads at most."""
    set_num_threads(min(count, config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
