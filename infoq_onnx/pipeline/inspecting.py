"""What is there to quantize in a model?"""

from __future__ import annotations

from pathlib import Path

from infoq_onnx.preparation import (
    prepare,
)
from infoq_onnx.schema import (
    Network,
)


def inspect(model: Path | str) -> Network:
    """Say what there is to quantize in a model: layers, groups, parameters, MACs, and what was skipped and why."""
    return prepare(model).network
