"""Give every node a unique name. Reports, allocations and journals identify layers by name."""

from __future__ import annotations

import onnx

from infoq_onnx.graph.editing import unused_name


def name_nodes(model: onnx.ModelProto) -> int:
    """Make node names unique.

    An unnamed node is named after its operator and its first output. If several nodes have the same name, a number is
    appended to all except the first.


    Returns
    -------
    int
        Number of nodes renamed.
    """
    seen: set[str] = set()
    taken = {node.name for node in model.graph.node}
    changes = 0
    for node in model.graph.node:
        if not node.name or node.name in seen:
            base = node.name or f"{node.op_type}_{node.output[0]}"
            node.name = unused_name(base, taken)
            taken.add(node.name)
            changes += 1
        seen.add(node.name)
    return changes
