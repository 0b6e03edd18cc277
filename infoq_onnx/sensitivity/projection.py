"""Random projections of observed tensors, computed inside the model so that feature maps are never stored.

SMI (InfoQ §3) projects a tensor of d values on m directions drawn uniformly from the unit sphere. The output of a
convolution has up to a million values, and a dense d × m matrix would cost more than the network. A long tensor is
therefore folded first: its values get random signs and are summed into D ≤ 4096 strided buckets. Only the buckets are
projected. The resulting direction, θ_i = σ_i · g_(i mod D), is isotropic (E θθᵀ = I/d) and costs one pass over the
tensor. For d ≤ 4096 nothing is folded and the direction is exactly uniform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from infoq_onnx.graph.graph import Graph
from infoq_onnx.sensitivity.estimators import directions

BUCKETS = 4096


def projection_name(tensor: str) -> str:
    """Return the name of the projected tensor [N, m]."""
    return f"{tensor}/projections"


def add_projections(
    model: onnx.ModelProto, graph: Graph, tensors: Sequence[str], count: int, seed: int
) -> onnx.ModelProto:
    """Copy a model and add projections of some tensors as outputs.

    Parameters
    ----------
    model : a simulation of `graph`, with the same tensor names and shapes
    graph : the normalised graph
    tensors : observed tensors, in a fixed order; the directions of tensor j depend only on the seed, j and the tensor's
        size, so that the same network from another exporter gets the same projections
    count : number of directions per tensor, m
    seed : seed of the analysis

    Returns
    -------
    onnx.ModelProto
        The copy, with an output [N, m] per tensor, named by `projection_name`.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for index, tensor in enumerate(tensors):
        nodes, constants = _projection(tensor, math.prod(graph.shapes[tensor]), count, (seed, index))
        result.graph.node.extend(nodes)
        result.graph.initializer.extend(constants)
        batch = "batch" if graph.batch is None else graph.batch
        name = projection_name(tensor)
        result.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, count]))
    return result


def _projection(
    tensor: str, size: int, count: int, entropy: tuple[int, int]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    # the third word separates these random streams from those of X_E's directions
    signs_seed, directions_seed = np.random.SeedSequence((*entropy, 1)).spawn(2)
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    name = projection_name(tensor)

    def constant(label: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value, f"{name}/{label}"))
        return f"{name}/{label}"

    def node(op_type: str, inputs: list[str], output: str) -> str:
        nodes.append(helper.make_node(op_type, inputs, [output], name=output))
        return output

    flat = node("Reshape", [tensor, constant("flat_shape", np.array([-1, size]))], f"{name}/flat")
    buckets = size if size <= BUCKETS else _buckets(size)
    if size > BUCKETS:
        folds = math.ceil(size / buckets)
        if folds * buckets != size:
            pads = np.array([0, 0, 0, folds * buckets - size])
            flat = node("Pad", [flat, constant("pads", pads)], f"{name}/padded")
        draw = np.random.default_rng(signs_seed).integers(0, 2, size=(1, folds * buckets))
        signed = node("Mul", [flat, constant("signs", (2 * draw - 1).astype(np.float32))], f"{name}/signed")
        shape = constant("folded_shape", np.array([-1, folds, buckets]))
        folded = node("Reshape", [signed, shape], f"{name}/folded")
        flat = f"{name}/buckets"
        axes = constant("axes", np.array([1]))
        nodes.append(helper.make_node("ReduceSum", [folded, axes], [flat], name=flat, keepdims=0))
    matrix = directions(buckets, count, directions_seed).astype(np.float32)
    node("MatMul", [flat, constant("directions", matrix)], name)
    return nodes, constants


def _buckets(size: int) -> int:
    """Return the largest divisor of `size` up to BUCKETS; BUCKETS (with padding) if that is below BUCKETS / 4."""
    divisor = next(d for d in range(BUCKETS, 0, -1) if size % d == 0)
    return divisor if divisor >= BUCKETS // 4 else BUCKETS
