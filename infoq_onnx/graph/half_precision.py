"""Half-precision models become float32: every type, constant and attribute that says float16 or bfloat16."""

from __future__ import annotations

import numpy as np
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, TypeProto, numpy_helper

from infoq_onnx.graph.editing import is_standard, to_array

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type", "softmax_precision")


def to_float32(model: ModelProto) -> int:
    """Convert a model in half precision to float32, in place.

    Types of inputs, outputs and inner tensors, constants, and attributes that name a type change, in subgraphs and
    local functions, too. Casts to half precision become casts from float32 to float32, which do nothing.

    Returns
    -------
    int
        How many types, constants and attributes were changed.
    """
    return _convert(model)


def _convert(message: Message) -> int:
    if isinstance(message, TensorProto):
        return _tensor(message)
    count = 0
    if isinstance(message, TypeProto.Tensor | TypeProto.SparseTensor) and message.elem_type in _HALVES:
        message.elem_type = TensorProto.FLOAT
        count += 1
    if isinstance(message, NodeProto) and is_standard(message.domain):
        for attribute in message.attribute:
            is_type = attribute.name in _TYPE_ATTRIBUTES and attribute.type == AttributeProto.INT
            if is_type and attribute.i in _HALVES:
                attribute.i = TensorProto.FLOAT
                count += 1
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            parts = value if not isinstance(value, Message) else (value,)
            count += sum(map(_convert, parts))
    return count


def _tensor(tensor: TensorProto) -> int:
    if tensor.data_type not in _HALVES:
        return 0
    values = to_array(tensor).astype(np.float32)
    name, doc = tensor.name, tensor.doc_string
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    tensor.doc_string = doc
    return 1
