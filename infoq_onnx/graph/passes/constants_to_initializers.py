"""Replace Constant nodes by initializers with the same name and value."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from infoq_onnx.graph.editing import output_names, remove_nodes


def constants_to_initializers(model: onnx.ModelProto) -> int:
    """Replace Constant nodes by initializers, except strings, sparse tensors and graph outputs.

    Returns
    -------
    int
        Number of nodes replaced.
    """
    outputs = output_names(model.graph)
    replaced = []
    for node in model.graph.node:
        if node.op_type != "Constant" or node.domain or node.output[0] in outputs:
            continue
        tensor = _value(node)
        if tensor is not None:
            tensor.name = node.output[0]
            model.graph.initializer.append(tensor)
            replaced.append(node)
    remove_nodes(model.graph, replaced)
    return len(replaced)


def _value(node: NodeProto) -> TensorProto | None:
    kind = node.attribute[0].name
    value = helper.get_attribute_value(node.attribute[0])
    if kind == "value":
        tensor = TensorProto()
        tensor.CopyFrom(value)
        return tensor
    if kind in ("value_float", "value_floats"):
        return numpy_helper.from_array(np.asarray(value, dtype=np.float32))
    if kind in ("value_int", "value_ints"):
        return numpy_helper.from_array(np.asarray(value, dtype=np.int64))
    return None
