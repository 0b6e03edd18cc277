"""Files of arrays with something changed, and that they are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from infoq_onnx.errors import AnalysisError
from tests.prepared import is_one_line


def replaced(path: Path, name: str, value: np.ndarray) -> None:
    """Put another array into an .npz file, or one more."""
    with np.load(path) as arrays:
        content = dict(arrays)
    np.savez_compressed(path, **{**content, name: value})


def assert_damaged(path: Path, load: Callable[[Path], object]) -> None:
    """Make sure that a file is refused in one line that names it and the remedy."""
    with pytest.raises(AnalysisError) as caught:
        load(path)
    assert is_one_line(caught.value, f"{path.name} is missing or damaged", "run analyze again")
