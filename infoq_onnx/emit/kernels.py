"""Kernels that onnxruntime runs for the layers of a quantized model, and which of them may saturate without VNNI.

The kernels are read from the graph that onnxruntime optimises when it loads the model. The reason why a layer stays in
float is found in the model itself (`emit.float_reasons`).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import inliner

from infoq_onnx.emit.float_reasons import INTEGER_KERNELS, FloatReasons
from infoq_onnx.emit.saturation import SaturationView
from infoq_onnx.graph.editing import QUANTIZABLE, initializers_of, is_standard
from infoq_onnx.graph.float_only import float_reason
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.session import Runtime, open_session, using
from infoq_onnx.schema import Kernel, Network


def find_kernels(model: onnx.ModelProto) -> tuple[Kernel, ...]:
    """Report which kernel onnxruntime runs for each layer of a model.

    Parameters
    ----------
    model : any model, with external data loaded; it is not modified

    Returns
    -------
    tuple of Kernel
        In the order of the nodes.

    Raises
    ------
    Exception
        One of `graph.ort.ORT_ERRORS`: onnxruntime cannot load the model.
    """
    marked = onnx.ModelProto()
    marked.CopyFrom(inliner.inline_local_functions(model) if model.functions else model)
    names = [node.name for node in marked.graph.node]
    for index, node in enumerate(marked.graph.node):
        # onnxruntime keeps the names of layers that become integer kernels, or appends a suffix
        node.name = f"node_{index}"
    optimized = _optimized(marked).graph
    running = {re.split(r"_token_|/", node.name)[0]: node for node in optimized.node}
    reasons, sums = FloatReasons(marked.graph), SaturationView(optimized)
    constants = initializers_of(marked.graph)
    kernels = []
    for index, node in enumerate(marked.graph.node):
        # in the operator-oriented format, the layer already is an integer kernel
        fused = node.op_type in INTEGER_KERNELS
        is_layer = node.op_type in QUANTIZABLE and is_standard(node.domain)
        if fused or is_layer or float_reason(node, constants):
            # what lost its name is a float kernel that took up what stood behind it
            found = running.get(node.name, node)
            runs = node.op_type if fused else found.op_type
            name, reason = names[index] or node.output[0], reasons.of(node, runs)
            kernels.append(Kernel(name, node.op_type, runs, runs in INTEGER_KERNELS, reason, sums.saturates(found)))
    return tuple(kernels)


def left_in_float(graph: Graph, network: Network, kernels: Sequence[Kernel]) -> tuple[Kernel, ...]:
    """Find the layers of an emitted file that run in float although onnxruntime has an integer kernel for them.

    There is no integer kernel for ConvTranspose, for a MatMul with its constant on the left, and for a Conv whose
    output is an output of the graph, which is not quantized.

    Parameters
    ----------
    graph, network : the network that the file was made from
    kernels : the kernels of the file, from `find_kernels`

    Returns
    -------
    tuple of Kernel
    """
    possible = set()
    for layer in network.layers:
        left = layer.weight is not None and graph.producer[layer.output].input[0] == layer.weight
        ends = layer.op_type == "Conv" and layer.output in graph.outputs
        if layer.op_type != "ConvTranspose" and not left and not ends:
            possible.add(layer.name)
    return tuple(kernel for kernel in kernels if kernel.layer in possible and not kernel.integer)


def _optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        with using(Runtime()):
            open_session(model, optimized=path)
        return onnx.load(path)
