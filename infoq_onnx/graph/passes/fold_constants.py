"""Compute nodes that have only constant inputs once, in onnxruntime, and replace them by their results.

The constant nodes form a region. Only the tensors that the rest of the graph reads from the region (its frontier)
become initializers, so intermediate results are not stored. A node whose result would enlarge the file (larger than 16
MiB and larger than its constant inputs) is not replaced.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from infoq_onnx.errors import ModelError
from infoq_onnx.graph.editing import infer, initializers_of, output_names, reads, remove_nodes, subgraphs, to_array
from infoq_onnx.graph.ort import ORT_ERRORS, first_line, run

LARGEST_RESULT = 16 * 2**20
"""Results of up to this many bytes are always stored, regardless of the size of the inputs."""

_RANDOM = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Dropout"]
)
_QUANTIZING = frozenset(["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"])
_STORABLE = frozenset(
    [
        TensorProto.FLOAT,
        TensorProto.DOUBLE,
        TensorProto.FLOAT16,
        TensorProto.BOOL,
        TensorProto.INT8,
        TensorProto.INT16,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.UINT8,
        TensorProto.UINT16,
        TensorProto.UINT32,
        TensorProto.UINT64,
    ]
)


def fold_constants(model: ModelProto) -> int:
    """Compute constant nodes and replace them by initializers.

    Random and (de)quantizing operators, nodes with subgraphs, operators of other domains and nodes that write a graph
    output are not replaced.

    Returns
    -------
    int
        Number of nodes replaced.
    """
    graph = model.graph
    kept: set[str] = set()
    while region := _constant_region(model, kept):
        frontier = _frontier(graph, region)
        results = _compute(model, region, frontier)
        constants = initializers_of(graph)
        too_large = {
            producer.output[0]
            for producer in region
            if any(name in results and _grows(constants, producer, results[name]) for name in producer.output)
        }
        if not too_large:
            remove_nodes(graph, region)
            graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in results.items())
            return len(region)
        kept |= too_large
    return 0


def _constant_region(model: ModelProto, kept: set[str]) -> list[NodeProto]:
    known = set(initializers_of(model.graph))
    outputs = output_names(model.graph)
    candidates = []
    for node in model.graph.node:
        barred = node.output[0] in kept or not outputs.isdisjoint(node.output)
        if not barred and _is_pure(node) and known.issuperset(reads(node)):
            candidates.append(node)
            known.update(node.output)
    if not candidates:
        return []
    storable = {name for name, kind in infer(model).types.items() if kind in _STORABLE}
    region: list[NodeProto] = []
    known = set(initializers_of(model.graph))
    for node in candidates:
        if known.issuperset(reads(node)) and storable.issuperset(filter(None, node.output)):
            region.append(node)
            known.update(node.output)
    return region


def _is_pure(node: NodeProto) -> bool:
    return (
        not node.domain
        and node.op_type not in _RANDOM | _QUANTIZING
        and node.op_type != "Constant"
        and next(subgraphs(node), None) is None
    )


def _frontier(graph: GraphProto, region: list[NodeProto]) -> list[str]:
    written = [name for node in region for name in node.output if name]
    inside = {tuple(node.output) for node in region}
    read = {name for node in graph.node if tuple(node.output) not in inside for name in reads(node)}
    return [name for name in written if name in read]


def _compute(model: ModelProto, region: list[NodeProto], frontier: list[str]) -> dict[str, NDArray[Any]]:
    if not frontier:
        return {}
    constants = initializers_of(model.graph)
    used = dict.fromkeys(name for node in region for name in reads(node) if name in constants)
    graph = helper.make_graph(
        region, "constants", [], [ValueInfoProto(name=name) for name in frontier], [constants[name] for name in used]
    )
    tiny = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        results = run(tiny, {}, frontier)
    except ORT_ERRORS as error:
        raise ModelError(
            f"onnxruntime cannot compute what depends on no input: {first_line(error)}; export the model again"
        ) from error
    return {name: np.asarray(result) for name, result in zip(frontier, results, strict=True)}


def _grows(constants: dict[str, TensorProto], producer: NodeProto, result: NDArray[Any]) -> bool:
    source = sum(to_array(constants[name]).nbytes for name in reads(producer) if name in constants)
    return result.nbytes > max(LARGEST_RESULT, source)
