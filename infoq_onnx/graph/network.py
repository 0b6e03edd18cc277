"""Find the quantizable layers of a model with their costs, and the activation groups that feed them."""

from __future__ import annotations

import math

import numpy as np
from onnx import NodeProto, TensorProto

from infoq_onnx.errors import ModelError
from infoq_onnx.graph.editing import QUANTIZABLE, input_at, opset_of, subgraphs, walk
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.macs import macs_of
from infoq_onnx.schema import ActivationGroup, Layer, Network, SkippedNode

ACTIVATIONS = frozenset(
    [
        "Celu",
        "Clip",
        "Elu",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Mish",
        "PRelu",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Softsign",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
    ]
)
"""Element-wise activation functions."""

_FLOAT_OPERATORS = {
    "Attention": "attention in one operator is kept in float",
    "BiasGelu": "fused operators are kept in float",
    "DeformConv": "deformable convolution is kept in float",
    "Einsum": "Einsum is kept in float; export it as MatMul to quantize it",
    "EmbedLayerNormalization": "embeddings are kept in float",
    "FusedConv": "fused operators are kept in float; export the model without onnxruntime's optimisations",
    "FusedGemm": "fused operators are kept in float; export the model without onnxruntime's optimisations",
    "FusedMatMul": "fused operators are kept in float; export the model without onnxruntime's optimisations",
    "GRU": "recurrent operators are kept in float",
    "GroupQueryAttention": "attention in one operator is kept in float",
    "LSTM": "recurrent operators are kept in float",
    "MultiHeadAttention": "attention in one operator is kept in float",
    "NhwcConv": "fused operators are kept in float; export the model without onnxruntime's optimisations",
    "RNN": "recurrent operators are kept in float",
}


def find_network(graph: Graph) -> Network:
    """Find the quantizable layers of a normalised graph, the groups that feed them, and the nodes that stay in float.

    A layer that the first output does not depend on, such as an auxiliary head, stays in float because its quantization
    error cannot be scored.

    Raises
    ------
    ModelError
        There is no quantizable layer, a layer has tensors without elements, or the first output is not float32 with one
        score per class.
    """
    classes = _classes(graph)
    wanted = graph.ancestors(graph.output)
    layers: list[Layer] = []
    skipped: list[SkippedNode] = []
    for node in graph.nodes:
        if reason := _obstacle(graph, node):
            skipped.append(SkippedNode(node.name, node.op_type, reason))
        elif node.op_type in QUANTIZABLE and not node.domain:
            if wanted.isdisjoint(node.output):
                skipped.append(SkippedNode(node.name, node.op_type, "the first output does not depend on it"))
            else:
                layers.append(_layer(graph, node))
                if 0 in (*layers[-1].weight_shape, *layers[-1].output_shape, *_shapes_read(graph, layers[-1])):
                    raise ModelError(f"{node.op_type} {node.name!r} multiplies tensors of size 0; export without it")
    if not layers:
        leading = {node.op_type for node in graph.nodes if not wanted.isdisjoint(node.output)}
        found = ", ".join(sorted(leading)) or "no operators"
        raise ModelError(
            f"nothing to quantize: no Conv, ConvTranspose, Gemm or MatMul with float32 weights among {found}"
        )
    return Network(
        input=graph.input,
        input_shape=graph.shapes[graph.input],
        output=graph.output,
        classes=classes,
        batch=graph.batch,
        opset=opset_of(graph.model),
        layers=tuple(layers),
        groups=_groups(graph, layers),
        skipped=tuple(skipped),
    )


def _classes(graph: Graph) -> int:
    shape, kind = graph.shapes[graph.output], graph.dtypes[graph.output]
    wide = [size for size in shape if size != 1]
    if graph.output not in graph.batched or len(wide) != 1 or kind != np.float32:
        rank = "batch, " * (graph.output in graph.batched)
        raise ModelError(
            f"output {graph.output!r} is {kind} [{rank}{', '.join(map(str, shape))}], not float32 [batch, classes]: "
            "infoq-onnx quantizes classifiers that give one score a class"
        )
    return wide[0]


def _groups(graph: Graph, layers: list[Layer]) -> tuple[ActivationGroup, ...]:
    fed: dict[str, list[str]] = {}
    for layer in layers:
        for name in dict.fromkeys(layer.groups):
            fed.setdefault(name, []).append(layer.name)
    return tuple(
        ActivationGroup(name, tuple(names), graph.shapes[name], graph.elements(name)) for name, names in fed.items()
    )


# ------------------------------------------------------------------------------------------------------------ skipping


def _obstacle(graph: Graph, node: NodeProto) -> str | None:
    """Return why a node that could be quantized in principle stays in float; None for layers and all other nodes."""
    if node.op_type in _FLOAT_OPERATORS:
        return _FLOAT_OPERATORS[node.op_type]
    if any(inner.op_type in QUANTIZABLE for subgraph in subgraphs(node) for inner in walk(subgraph.node)):
        return f"its layers are inside the subgraph of {node.op_type}"
    if node.domain:
        return None
    if node.op_type == "Gather":
        return _embedding(graph, node)
    if node.op_type not in QUANTIZABLE:
        return None
    return _untyped(graph, node) or _unsuited(graph, node)


def _embedding(graph: Graph, node: NodeProto) -> str | None:
    table = graph.initializers.get(node.input[0])
    if table is not None and table.data_type == TensorProto.FLOAT and len(table.dims) > 1:
        return "embedding tables are kept in float"
    return None


def _untyped(graph: Graph, node: NodeProto) -> str | None:
    for name in node.input[:2]:
        kind = graph.constant(name).dtype if name in graph.initializers else graph.dtypes.get(name)
        if kind != np.float32:
            return f"its input {name!r} is {kind}, not float32"
    return None


def _unsuited(graph: Graph, node: NodeProto) -> str | None:
    data, weight = (name in graph.initializers for name in node.input[:2])
    if node.op_type != "MatMul":
        if data:
            return "its data input is a constant"
        return None if weight else "its weight is computed at run time"
    ranks = [
        len(graph.initializers[name].dims) if name in graph.initializers else _rank(graph, name) for name in node.input
    ]
    if min(ranks) < 2:
        return "one of its inputs is a vector, not a matrix"
    stacked = any(name in graph.initializers and len(graph.initializers[name].dims) > 2 for name in node.input)
    return "its weight is a stack of matrices, for which onnxruntime has no integer kernel" if stacked else None


def _rank(graph: Graph, name: str) -> int:
    return len(graph.shapes[name]) + (name in graph.batched)


# -------------------------------------------------------------------------------------------------------------- layers


def _layer(graph: Graph, node: NodeProto) -> Layer:
    slot = next((index for index in (1, 0) if node.input[index] in graph.initializers), None)
    weight = None if slot is None else node.input[slot]
    shape = () if weight is None else tuple(graph.initializers[weight].dims)
    return Layer(
        name=node.name,
        op_type=node.op_type,
        groups=tuple(name for index, name in enumerate(node.input[:2]) if index != slot),
        weight=weight,
        weight_shape=shape,
        channel_axis=None if slot is None else _channel_axis(node, slot, len(shape)),
        bias=_bias(graph, node, slot),
        output=node.output[0],
        observed=_observed(graph, node.output[0]),
        output_shape=graph.shapes[node.output[0]],
        parameters=math.prod(shape) if shape else 0,
        macs=macs_of(graph, node, shape),
    )


def _shapes_read(graph: Graph, layer: Layer) -> list[int]:
    return [size for name in layer.groups for size in graph.shapes[name]]


def _bias(graph: Graph, node: NodeProto, slot: int | None) -> str | None:
    """Return the name of a layer's constant bias [C], if any. An Add adds the bias of a MatMul."""
    if node.op_type != "MatMul":
        bias = input_at(node, 2)
        return bias if bias in graph.initializers and len(graph.initializers[bias].dims) == 1 else None
    readers = graph.consumers.get(node.output[0], [])
    if slot != 1 or node.output[0] in graph.outputs or len(readers) != 1 or readers[0].op_type != "Add":
        return None
    bias = next((name for name in readers[0].input if name in graph.initializers), "")
    if not bias or len(graph.consumers[bias]) != 1 or graph.initializers[bias].data_type != TensorProto.FLOAT:
        return None
    return bias if tuple(graph.initializers[bias].dims) == (graph.initializers[node.input[1]].dims[-1],) else None


def _channel_axis(node: NodeProto, slot: int, rank: int) -> int:
    if node.op_type == "MatMul":
        return rank - 1 if slot == 1 else rank - 2
    return 1 if node.op_type == "ConvTranspose" else 0


def _observed(graph: Graph, output: str) -> str:
    """Return the tensor at which a layer's quantization error is observed.

    From the layer's output, follow sole consumers through Adds of constants, activation functions and at most one
    residual Add.
    """
    tensor, residual = output, False
    while tensor not in graph.outputs and len(graph.consumers.get(tensor, [])) == 1:
        node = graph.consumers[tensor][0]
        if node.op_type == "Add" and not node.domain and not residual:
            others = [name for name in node.input if name != tensor]
            if len(others) != 1:
                break
            residual = others[0] not in graph.initializers
        elif node.op_type not in ACTIVATIONS or node.input[0] != tensor:
            break
        tensor = node.output[0]
    return tensor
