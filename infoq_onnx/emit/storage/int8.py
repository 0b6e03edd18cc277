"""One byte a weight, whatever its bit-width: what every tool can read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

from infoq_onnx.emit.storage.stored import Stored


def int8(name: str, codes: npt.NDArray[np.int8], bits: int, axis: int, opset: int) -> Stored:  # noqa: ARG001
    """Store codes as an int8 initializer."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(codes), f"{name}/codes")
    return Stored(tensor.name, (tensor,))
