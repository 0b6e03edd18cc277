"""Fixtures that every test folder may use."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Let Ctrl-C be tried out: a shell starts what it leaves in the background deaf to it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and images beside the checkout; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("INFOQ_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "models").is_dir():
        pytest.skip(f"no real models and images in {folder} (set INFOQ_SHARED to a folder that has them)")
    return folder
