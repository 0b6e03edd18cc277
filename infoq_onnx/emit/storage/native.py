"""ONNX's own narrow integers: INT2 and INT4 initializers behind a Cast to INT8; 5 to 8 bits take a byte.

A DequantizeLinear straight behind INT4 would make onnxruntime run a float convolution, and behind INT2 it loads nothing
at all. Behind the Cast, which it folds when it loads the model, it finds the int8 tensor that its kernels want.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from infoq_onnx.emit.storage.int8 import int8
from infoq_onnx.emit.storage.stored import Stored

_TYPES = {2: ml_dtypes.int2, 3: ml_dtypes.int4, 4: ml_dtypes.int4}
OPSETS = {2: 25, 3: 21, 4: 21}
"""First operator set that has the type of a bit-width."""


def native(name: str, codes: npt.NDArray[np.int8], bits: int, opset: int) -> Stored:
    """Store codes in the narrowest integer type that holds them."""
    if bits not in _TYPES:
        return int8(name, codes, bits, opset)
    output = f"{name}/codes"
    narrow = numpy_helper.from_array(codes.astype(_TYPES[bits]), f"{name}/narrow")
    node = helper.make_node("Cast", [narrow.name], [output], name=output, to=onnx.TensorProto.INT8)
    return Stored(output, (narrow,), node)
