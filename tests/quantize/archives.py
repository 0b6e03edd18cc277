"""Files of arrays with something changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def replaced(path: Path, name: str, value: np.ndarray) -> None:
    """Put another array into an .npz file, or one more."""
    with np.load(path) as arrays:
        content = dict(arrays)
    np.savez_compressed(path, **{**content, name: value})
