"""Exactly b bits per weight: bit planes in uint8 initializers, combined by standard operators.

A field f (`emit.storage.narrow`) is stored as u = f + 2^(b−1), 0 ≤ u < 2^b. u is cut into planes of 4, 2 and 1 bits
(3 = 2 + 1, 7 = 4 + 2 + 1 …), so that every plane fills its bytes without a remainder. In a plane of n bytes, byte i
holds the plane's part of the fields i, i + n, i + 2n …. Unpacking is then a broadcast shift and needs no transposition.

onnxruntime inlines the function and folds it when it loads the model. It then runs the same integer kernels as if the
codes had been stored as bytes. A shift to the left and one to the right isolate a field, because BitwiseAnd would need
operator set 18.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from infoq_onnx.emit.storage.int8 import int8
from infoq_onnx.emit.storage.narrow import narrow, shift_nodes
from infoq_onnx.emit.storage.stored import DOMAIN, Stored
from infoq_onnx.quantize.codes import RoundedWeight

_BYTE = 8


def plane_widths(bits: int) -> tuple[int, ...]:
    """Return the widths of the planes of a code, most significant (and widest) first. They sum to `bits`."""
    return tuple(width for width in (4, 2, 1) if bits & width)


def packed(name: str, held: RoundedWeight, axis: int, opset: int) -> Stored:
    """Store codes in exactly their bits. At 8 bits, the result is a plain int8 initializer.

    Parameters
    ----------
    name : prefix of every name
    held : the rounded weight, of any shape
    axis : output-channel axis
    opset : operator set version of the model

    Returns
    -------
    Stored
    """
    if held.bits == _BYTE:
        return int8(name, held, axis, opset)
    output = f"{name}/codes"
    cut = narrow(held, axis)
    planes = pack(cut.fields, held.bits)
    constants = [numpy_helper.from_array(plane, f"{name}/plane_{index}") for index, plane in enumerate(planes)]
    if cut.origins is not None:
        constants.append(numpy_helper.from_array(cut.origins, f"{name}/origins"))
    function = unpack_function(held.bits, opset, shifted=cut.origins is not None)
    inputs = [constant.name for constant in constants]
    node = helper.make_node(function.name, inputs, [output], name=output, domain=DOMAIN, shape=list(held.codes.shape))
    return Stored(output, tuple(constants), node, function)


def pack(fields: npt.NDArray[np.int8], bits: int) -> list[npt.NDArray[np.uint8]]:
    """Cut fields into planes, in the order of `plane_widths`. Each plane is a uint8 array [n] of its bytes."""
    unsigned = fields.astype(np.int16).ravel() + (1 << (bits - 1))
    planes = []
    offset = bits
    for width in plane_widths(bits):
        offset -= width
        parts = ((unsigned >> offset) & ((1 << width) - 1)).astype(np.uint8)
        per_byte = _BYTE // width
        size = -(-parts.size // per_byte)
        rows = np.pad(parts, (0, size * per_byte - parts.size)).reshape(per_byte, size)
        shifts = np.arange(per_byte, dtype=np.uint8)[:, None] * np.uint8(width)
        planes.append(np.bitwise_or.reduce(rows << shifts, axis=0))
    return planes


def unpack_function(bits: int, opset: int, *, shifted: bool = False) -> onnx.FunctionProto:
    """Build the local function `Unpack{bits}`, which computes int8 codes of the shape in its attribute from planes.

    Parameters
    ----------
    bits : bits of the codes
    opset : operator set version of the model; the operators are the same from version 13 on, but a function must import
        the version of its model
    shifted : build `Unpack{bits}Shifted`, which has the origins as an additional input

    Returns
    -------
    onnx.FunctionProto
    """
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: npt.NDArray[np.generic]) -> str:
        nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name)))
        return name

    def node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    # the shape is an attribute, because an attribute takes a few bytes of the file and an initializer a hundred
    given = helper.make_node("Constant", [], ["shape"])
    given.attribute.append(onnx.AttributeProto(name="value_ints", ref_attr_name="shape", type=onnx.AttributeProto.INTS))
    nodes.append(given)
    widths = plane_widths(bits)
    planes = [f"plane_{index}" for index in range(len(widths))]
    flat = constant("flat", np.array([-1]))
    start, axis = constant("start", np.array([0])), constant("axis", np.array([0]))
    size = node("ReduceProd", ["shape"], "size", keepdims=1)
    total = ""
    offset = bits
    for index, width in enumerate(widths):
        offset -= width
        per_byte = _BYTE // width
        # the field of row r is at bit r·w: shift it left to the top, then right to remove all other bits
        left = (_BYTE - width - width * np.arange(per_byte)).astype(np.uint8)[:, None]
        up = node("BitShift", [planes[index], constant(f"left_{index}", left)], f"up_{index}", direction="LEFT")
        right = constant(f"right_{index}", np.array(_BYTE - width, dtype=np.uint8))
        field = node("BitShift", [up, right], f"field_{index}", direction="RIGHT")
        if offset:
            place = constant(f"offset_{index}", np.array(offset, dtype=np.uint8))
            field = node("BitShift", [field, place], f"placed_{index}", direction="LEFT")
        row = node("Reshape", [field, flat], f"row_{index}")
        kept = node("Slice", [row, start, size, axis], f"kept_{index}")
        part = node("Cast", [kept], f"part_{index}", to=onnx.TensorProto.INT32)
        total = node("Add", [total, part], f"total_{index}") if total else part
    half = constant("half", np.array(1 << (bits - 1), dtype=np.int32))
    signed = node("Sub", [total, half], "signed")
    shaped = node("Reshape", [signed, "shape"], "shaped")
    inputs = list(planes)
    if shifted:
        nodes.extend(shift_nodes(shaped, "origins", "codes"))
        inputs.append("origins")
    else:
        node("Cast", [shaped], "codes", to=onnx.TensorProto.INT8)
    name = f"Unpack{bits}Shifted" if shifted else f"Unpack{bits}"
    imports = [helper.make_opsetid("", opset)]
    return helper.make_function(DOMAIN, name, inputs, ["codes"], nodes, imports, attributes=["shape"])
