"""Compile kernels with numba at their first call, and cache the machine code on disk if possible."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from infoq_onnx.errors import SettingsError

_MOST_THREADS = 1024


def _require_threads(text: str | None) -> None:
    """Check NUMBA_NUM_THREADS, which numba refuses when it is imported, or which exhausts the machine."""
    with contextlib.suppress(ValueError):
        # numba ignores what is no number
        if text is not None and not 1 <= int(text) <= _MOST_THREADS:
            raise SettingsError(
                f"the environment has NUMBA_NUM_THREADS={text}: set it to 1 to {_MOST_THREADS}, or unset it"
            )


_require_threads(os.environ.get("NUMBA_NUM_THREADS"))

from numba import njit, set_num_threads  # noqa: E402
from numba.core import config  # noqa: E402

F = TypeVar("F", bound=Callable[..., Any])


def _cache_folder() -> str:
    """Return the folder that caches machine code; "" if the user has no home folder."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        # neither HOME nor an entry in the user database, as in some containers
        return ""
    return str(caches / "infoq-onnx")


# By default, numba writes machine code to the folder of the source. In an installed package, these files would survive
# an uninstall, and the remaining folder would hide a later editable install. The user's cache folder is used instead.
if not config.CACHE_DIR:  # type: ignore[attr-defined]
    config.CACHE_DIR = _cache_folder()  # type: ignore[attr-defined]

# numba's workqueue threading layer, the only one on some machines, ends the process if two Python threads run parallel
# kernels at the same time. A single kernel uses all cores, so running kernels one at a time costs nothing.
_TURN = threading.Lock()


def compiled(function: F, *, parallel: bool = False) -> F:
    """Compile a function with numba at its first call. The compiled function releases the interpreter lock.

    Parameters
    ----------
    function : the function to compile
    parallel : run `prange` loops on numba's threads; see `compiled_parallel`, which is safe with several Python threads

    Returns
    -------
    callable
        The compiled function.
    """
    keep = bool(config.CACHE_DIR)  # type: ignore[attr-defined]
    try:
        return cast(F, njit(nogil=True, parallel=parallel, cache=keep)(function))
    except RuntimeError:
        # numba found no writable folder for machine code (home and install are read-only): compile in every process
        return cast(F, njit(nogil=True, parallel=parallel)(function))


def compiled_parallel(function: F) -> F:
    """Compile a function with a `prange` loop, which runs on numba's threads. Only one such function runs at a time."""
    kernel = compiled(function, parallel=True)

    @functools.wraps(function)
    def in_turn(*arguments: Any) -> Any:
        with _TURN:
            try:
                return kernel(*arguments)
            except ValueError as error:
                if "hreading layer" not in str(error):
                    raise
                layer = os.environ.get("NUMBA_THREADING_LAYER")
                raise SettingsError(f"numba has no threading layer {layer}: unset NUMBA_THREADING_LAYER") from error

    return cast(F, in_turn)


def limit_threads(count: int) -> None:
    """Limit the number of threads that kernels called by this thread use."""
    set_num_threads(min(count, config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
