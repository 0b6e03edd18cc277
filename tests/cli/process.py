"""The command line as a process of its own, as a shell starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run_process(
    *args: str, before: str = "", env: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run `infoq-onnx args` in the working folder and wait for it; its output is text.

    `before` is a line of Python to be run first; `options` are those of `subprocess.run`.
    """
    script = f"{before}\nfrom infoq_onnx.cli import main\nmain(prog_name='infoq-onnx')"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(
        [sys.executable, "-c", script, *args],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **(env or {})},
        encoding="utf-8",
        timeout=300,
        check=False,
        **options,
    )
