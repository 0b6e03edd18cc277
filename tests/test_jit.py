"""Where kernels are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import pwd

def nobody(uid):
    raise KeyError(uid)

pwd.getpwuid = nobody
from infoq_onnx.jit import compiled

@compiled
def double(x):
    return 2 * x

print(double(21))
"""


def test_a_user_without_a_home_keeps_none(tmp_path: Path) -> None:
    """As in a container that runs under a number that no list of users has."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    unset = ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr
    assert list(tmp_path.iterdir()) == [script]
