"""What the pages of all benchmarks say of the run."""

from __future__ import annotations

import importlib.metadata


def versions(*packages: str) -> str:
    """Name installed packages with their versions."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
