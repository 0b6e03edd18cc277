"""Give each layer its own weight and bias.

The first layer that uses an initializer keeps it, unless other nodes or graph outputs use it too. Other layers get
copies. A shared weight could not be rounded, scaled or stored differently for each layer.
"""

from __future__ import annotations

import onnx

from infoq_onnx.graph.editing import QUANTIZABLE, reads, to_array
from infoq_onnx.graph.editor import Editor


def unshare_initializers(model: onnx.ModelProto) -> int:
    """Copy the constant inputs that layers share with each other, with other nodes or with graph outputs.

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
