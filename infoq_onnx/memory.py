"""How much memory processes take."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path

SMALLEST = 512 * 2**20
"""Bytes that an analysis of a small network takes, libraries included: no less can be asked for."""


def peak() -> int:
    """Bytes that this process had resident at most."""
    return _bytes(resource.RUSAGE_SELF)


def peak_of_children() -> int:
    """Bytes that the largest of the processes that this one has started, and that have ended, had resident at most."""
    return _bytes(resource.RUSAGE_CHILDREN)


def resident() -> int:
    """Bytes that this process has resident now; where the system does not tell, at most."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak()


def _bytes(who: int) -> int:
    # macOS counts in bytes, others in KiB
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
