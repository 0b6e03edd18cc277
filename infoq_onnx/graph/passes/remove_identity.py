"""Remove nodes that pass their input through: Identity, Dropout in inference mode, and Cast to the same type.

For y = Identity(x), the readers of y read x instead. If y is a graph output, x is renamed to y, so that the outputs
keep their names.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto

from infoq_onnx.graph.editing import attribute, infer, input_at, to_array
from infoq_onnx.graph.editor import Editor


def remove_identity(model: onnx.ModelProto) -> int:
    """Remove Identity nodes and Dropout nodes in inference mode, including those that read an initializer.

    A node that copies a graph input, an initializer or another graph output to a graph output is kept.

    Returns
    -------
    int
        Number of nodes removed.
    """
    editor = Editor(model.graph)
    types = infer(model).types if any(node.op_type == "Cast" for node in editor.nodes) else {}
    removed = sum(_bypass(editor, node) for node in editor.nodes if _passes_through(editor, node, types))
    editor.apply()
    return removed


def _passes_through(editor: Editor, node: NodeProto, types: dict[str, int]) -> bool:
    if node.domain or node.op_type not in ("Identity", "Dropout", "Cast"):
        return False
    if node.op_type == "Cast":
        return bool(attribute(node, "to") == types.get(node.input[0]))
    if node.op_type == "Identity":
        return True
    if any(editor.uses(mask) for mask in node.output[1:] if mask):
        return False
    training = input_at(node, 2)
    constant = editor.constants.get(training)
    return not training or (constant is not None and not to_array(constant).any())


def _bypass(editor: Editor, node: NodeProto) -> bool:
    source, target = node.input[0], node.output[0]
    if target not in editor.outputs:
        editor.remove([node])
        editor.read_instead(target, source)
        return True
    producer = editor.producer.get(source)
    if producer is None or source in editor.outputs:
        return False
    editor.remove([node])
    editor.read_instead(source, target)
    editor.set_output(producer, list(producer.output).index(source), target)
    return True
