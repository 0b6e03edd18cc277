"""Name a free first axis of the input, so that shape inference can track the batch through the graph."""

from __future__ import annotations

import onnx

from infoq_onnx.graph.editing import unused_name


def name_batch_axis(model: onnx.ModelProto) -> int:
    """Name the first axis of the input "batch" if it is free and unnamed.

    Exporters write a free axis without a size, or with size 0 or a negative size.


    Returns
    -------
    int
        Number of axes named.
    """
    taken = {
        dim.dim_param
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)
        for dim in value.type.tensor_type.shape.dim
    }
    changes = 0
    for value in model.graph.input:
        for axis in value.type.tensor_type.shape.dim[:1]:
            if not axis.dim_param and axis.dim_value <= 0:
                axis.dim_param = unused_name("batch", taken)
                changes += 1
    return changes
