"""ONNX's narrow integers: INT2 and INT4 initializers, followed by a Cast to INT8. Weights of 5 to 8 bits take a byte.

If each channel has its own origin, a local function combines origins and fields.

With a DequantizeLinear directly after INT4, onnxruntime would run a float convolution; after INT2, it cannot load the
model. onnxruntime folds the Cast when it loads the model, and gets the int8 tensor that its kernels need.
"""

from __future__ import annotations

import ml_dtypes
import onnx
from onnx import helper, numpy_helper

from infoq_onnx.emit.storage.int8 import int8
from infoq_onnx.emit.storage.narrow import narrow, shift_nodes
from infoq_onnx.emit.storage.stored import DOMAIN, Stored
from infoq_onnx.quantize.codes import RoundedWeight

_TYPES = {2: ml_dtypes.int2, 3: ml_dtypes.int4, 4: ml_dtypes.int4}
OPSETS = {2: 25, 3: 21, 4: 21}
"""Bits → first operator set version with the integer type of this bit-width."""


def native(name: str, held: RoundedWeight, axis: int, opset: int) -> Stored:
    """Store codes in the narrowest integer type that holds them."""
    if held.bits not in _TYPES:
        return int8(name, held, axis, opset)
    output = f"{name}/codes"
    cut = narrow(held, axis)
    fields = numpy_helper.from_array(cut.fields.astype(_TYPES[held.bits]), f"{name}/narrow")
    if cut.origins is None:
        node = helper.make_node("Cast", [fields.name], [output], name=output, to=onnx.TensorProto.INT8)
        return Stored(output, (fields,), node)
    origins = numpy_helper.from_array(cut.origins, f"{name}/origins")
    node = helper.make_node("Shift", [fields.name, origins.name], [output], name=output, domain=DOMAIN)
    return Stored(output, (fields, origins), node, _shift_function(opset))


def _shift_function(opset: int) -> onnx.FunctionProto:
    """Build the local function `Shift`, which computes int8 codes from INT2 or INT4 fields and origins."""
    # onnxruntime casts the narrowest types to only a few types; INT8 is one of them
    nodes = [
        helper.make_node("Cast", ["fields"], ["bytes"], to=onnx.TensorProto.INT8),
        helper.make_node("Cast", ["bytes"], ["wide"], to=onnx.TensorProto.INT32),
        *shift_nodes("wide", "origins", "codes"),
    ]
    return helper.make_function(
        DOMAIN, "Shift", ["fields", "origins"], ["codes"], nodes, [helper.make_opsetid("", opset)]
    )
