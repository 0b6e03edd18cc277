"""Each layer owns its weight and bias: the first to use an initializer keeps it, the others get copies.

A shared weight could not be rounded, scaled or stored differently in two layers.
"""

from __future__ import annotations

import onnx

from infoq_onnx.graph.editing import QUANTIZABLE, add_initializer, initializers_of, output_names, reads, to_array


def unshare_initializers(model: onnx.ModelProto) -> int:
    """Copy the weights and biases that layers share with each other or with other nodes.

    Returns
    -------
    int
        Number of copies made.
    """
    graph = model.graph
    constants = initializers_of(graph)
    layers = [node for node in graph.node if node.op_type in QUANTIZABLE and not node.domain]
    taken = output_names(graph).union(*(reads(node) for node in graph.node if node not in layers))
    copies = 0
    for layer in layers:
        for index, name in enumerate(layer.input):
            if name not in constants:
                continue
            if name in taken:
                layer.input[index] = add_initializer(graph, name, to_array(constants[name]))
                copies += 1
            taken.add(name)
    return copies
