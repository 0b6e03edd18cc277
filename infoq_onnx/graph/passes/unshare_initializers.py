"""Each layer owns its weight and bias: the first to use an initializer keeps it, the others get copies.

A shared weight could not be rounded, scaled or stored differently in two layers.
"""

from __future__ import annotations

import onnx

from infoq_onnx.graph.editing import QUANTIZABLE, reads, to_array
from infoq_onnx.graph.editor import Editor


def unshare_initializers(model: onnx.ModelProto) -> int:
    """Copy the weights and biases that layers share with each other or with other nodes.

    Returns
    -------
    int
        Number of copies made.
    """
    editor = Editor(model.graph)
    layers: list[onnx.NodeProto] = []
    others: list[onnx.NodeProto] = []
    for node in editor.nodes:
        (layers if node.op_type in QUANTIZABLE and not node.domain else others).append(node)
    taken = editor.outputs.union(*map(reads, others))
    copies = 0
    for layer in layers:
        for index, name in enumerate(layer.input):
            if name not in editor.constants:
                continue
            if name in taken:
                layer.input[index] = editor.add_constant(name, to_array(editor.constants[name]))
                copies += 1
            taken.add(name)
    return copies
