"""Find the quantizable layers of a model with their costs, and the activation groups that feed them."""

from __future__ import annotations

import math

import numpy as np
from onnx import NodeProto, TensorProto

from infoq_onnx.errors import ModelError
from infoq_onnx.graph.editing import QUANTIZABLE, input_at, opset_of, to_array
from infoq_onnx.graph.float_only import float_reason
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.logits import classes_of, refusal
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


def find_network(graph: Graph) -> Network:
    """Find the quantizable layers of a normalised graph, the groups that feed them, and the nodes that stay in float.

    A layer that the first output does not depend on, such as an auxiliary head, stays in float because its quantization
    error cannot be scored.

    Raises
    ------
    ModelError
        There is no quantizable layer, a layer has tensors without elements, or the output is not float32 with one score
        per class.
    """
    classes = classes_of(graph, graph.output)
    if not classes:
        raise ModelError(refusal(graph, graph.output))
    wanted = graph.ancestors(graph.output)
    layers: list[Layer] = []
    skipped: list[SkippedNode] = []
    for node in graph.nodes:
        if reason := _obstacle(graph, node):
            skipped.append(SkippedNode(node.name, node.op_type, reason))
        elif node.op_type in QUANTIZABLE and not node.domain:
            if wanted.isdisjoint(node.output):
                skipped.append(SkippedNode(node.name, node.op_type, "the class scores do not depend on it"))
            else:
                layers.append(_layer(graph, node))
                if 0 in (*layers[-1].weight_shape, *layers[-1].output_shape, *_shapes_read(graph, layers[-1])):
                    raise ModelError(f"{node.op_type} {node.name!r} multiplies tensors of size 0; export without it")
    if not layers:
        leading = {node.op_type for node in graph.nodes if not wanted.isdisjoint(node.output)}
        found = ", ".join(sorted(leading)) or "no operators"
        raise ModelError(
            f"nothing to quantize: no Conv, ConvTranspose, Gemm or MatMul with float32 weights among {found}; give a "
            "model that has some, exported to standard operators of ONNX"
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


def require_finite(graph: Graph, network: Network) -> None:
    """Refuse weights and biases that are NaN or infinite; other constants, such as an attention mask, may be.

    Raises
    ------
    ModelError
        The message names the tensor.
    """
    for name in (name for layer in network.layers for name in (layer.weight, layer.bias) if name):
        values = to_array(graph.initializers[name])
        if not np.isfinite(values).all():
            what = "NaN" if np.isnan(values).any() else "infinite"
            raise ModelError(f"tensor {name!r} has {what} values; train or export the model again")


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
    if reason := float_reason(node, graph.initializers):
        return reason
    if node.domain or node.op_type not in QUANTIZABLE:
        return None
    return _untyped(graph, node) or _unsuited(graph, node)


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
