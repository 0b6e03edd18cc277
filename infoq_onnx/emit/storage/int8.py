"""One byte per weight at any bit-width, which every tool can read."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from infoq_onnx.emit.storage.stored import Stored
from infoq_onnx.quantize.codes import RoundedWeight


def int8(name: str, held: RoundedWeight, axis: int, opset: int) -> Stored:  # noqa: ARG001
    """Store codes as an int8 initializer."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(held.codes), f"{name}/codes")
    return Stored(tensor.name, (tensor,))
