"""A dense layer written as MatMul and Add becomes Gemm, where its input is a matrix.

onnxruntime has an integer kernel that adds a bias to a product of matrices and may give floats, but makes it of a Gemm
only. Of MatMul and Add it makes one integer kernel of the product at most, and of neither where no quantizer stands
behind the Add.
"""

from __future__ import annotations

import onnx
from onnx import GraphProto, NodeProto, helper

from infoq_onnx.graph.editing import (
    Dimension,
    consumers_of,
    infer,
    initializers_of,
    output_names,
    remove_nodes,
)


def matmul_to_gemm(model: onnx.ModelProto) -> int:
    """Rewrite MatMul of [N, K] with a constant [K, M], read only by an Add of a constant row.

    The Gemm keeps the MatMul's name, and writes the sum's.

    Returns
    -------
    int
        Number of products rewritten.
    """
    graph = model.graph
    candidates = [node for node in graph.node if _sum(graph, node) is not None]
    if not candidates:
        return 0
    shapes = infer(model).shapes
    return sum(_rewrite(graph, node, shapes) for node in candidates)


def _sum(graph: GraphProto, node: NodeProto) -> NodeProto | None:
    """Return the Add of a product of matrices and a row."""
    if node.op_type != "MatMul" or node.domain or node.output[0] in output_names(graph):
        return None
    constants, readers = initializers_of(graph), consumers_of(graph).get(node.output[0], [])
    weight = constants.get(node.input[1])
    if weight is None or len(weight.dims) != 2 or len(readers) != 1 or readers[0].op_type != "Add":
        return None
    row = constants.get(_other(readers[0], node.output[0]))
    outputs = weight.dims[1]
    return readers[0] if row is not None and list(row.dims) in ([outputs], [1, outputs]) else None


def _other(node: NodeProto, tensor: str) -> str:
    return str(node.input[1] if node.input[0] == tensor else node.input[0])


def _rewrite(graph: GraphProto, product: NodeProto, shapes: dict[str, tuple[Dimension, ...]]) -> bool:
    added = _sum(graph, product)
    if added is None or len(shapes.get(product.input[0], ())) != 2:
        return False
    inputs = [*product.input, _other(added, product.output[0])]
    gemm = helper.make_node(
        "Gemm", inputs, list(added.output), name=product.name, alpha=1.0, beta=1.0, transA=0, transB=0
    )
    place = list(graph.node).index(product)
    remove_nodes(graph, [product, added])
    graph.node.insert(place, gemm)
    return True
