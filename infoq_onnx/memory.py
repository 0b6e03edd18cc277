"""Memory usage of processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from pathlib import Path

SMALLEST = 512 * 2**20
"""Smallest memory limit in bytes: what an analysis of a small network takes, including libraries."""


def peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    return _bytes(resource.RUSAGE_SELF)


def forget_peak() -> None:
    """Let `peak` count from now on, on systems that allow it (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_of_children() -> int:
    """Return the largest peak resident memory, in bytes, of any child process that has ended."""
    return _bytes(resource.RUSAGE_CHILDREN)


def resident() -> int:
    """Return the resident memory of this process in bytes; its peak if the system does not report the current value."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak()


def release() -> None:
    """Give memory that is free back to the system, where the C library can (glibc)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _bytes(who: int) -> int:
    # macOS reports bytes, other systems KiB
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
