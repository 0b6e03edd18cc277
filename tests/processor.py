"""Run code as on an x86 processor without VNNI."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from infoq_onnx.emit.targets import lacks_vnni

SOURCE = Path(__file__).parents[1] / "benchmarks" / "without_vnni.c"


@functools.cache
def _hidden() -> str | None:
    """Build the library that hides VNNI; None where that is not possible."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or platform.machine() != "x86_64" or compiler is None:
        return None
    library = Path(tempfile.mkdtemp()) / "without_vnni.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    works = subprocess.run([sys.executable, "-c", ""], env={**os.environ, "LD_PRELOAD": str(library)}, check=False)
    return str(library) if works.returncode == 0 else None


def run_without_vnni(*arguments: str) -> str:
    """Run Python with arguments on a processor without VNNI, or where VNNI is hidden; skip where neither is possible.

    Returns
    -------
    str
        What it printed.
    """
    environment = dict(os.environ)
    if not lacks_vnni():
        if (library := _hidden()) is None:
            pytest.skip("VNNI cannot be hidden here: that needs Linux on x86-64, a C compiler, and CPUID faulting")
        environment["LD_PRELOAD"] = library
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=300
    )
    return done.stdout
