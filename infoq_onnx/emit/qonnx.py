"""The QONNX model, for FINN and Brevitas: every quantizer is one Quant node with its bit-width.

y = scale · (round(clip(x / scale + zero_point, low, high)) − zero_point), computed in float (Pappalardo et al. 2022,
arXiv 2206.07527). Weights are float values on their grid, followed by a Quant; biases are float values. If each channel
has its own levels, the zero points of a weight's Quant are multiples of ½.

QuantizeLinear adds the zero point after rounding, Quant before rounding. The results differ if a value lies exactly
between two codes and the zero point is odd.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.emit.storage.narrow import narrow
from infoq_onnx.emit.verify import compare
from infoq_onnx.errors import MissingDependencyError, VerificationError, setting
from infoq_onnx.graph.compact import strip_documentation
from infoq_onnx.graph.editing import add_metadata, initializers_of, input_at, replace_nodes, to_array
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.load import QONNX_DOMAIN
from infoq_onnx.graph.passes.remove_dead import remove_dead
from infoq_onnx.graph.session import open_session
from infoq_onnx.quantize.grid import per_channel
from infoq_onnx.schema import BASELINE_BITS, Network, Verification
from infoq_onnx.simulate.running.batching import batch_size, logits_of, padded
from infoq_onnx.simulate.simulation import LayerCodes

MAX_RELATIVE_RMS = 0.1
"""Largest root mean square of the logit differences, as a share of the logits' standard deviation."""


def qonnx_model(
    simulation: onnx.ModelProto,
    network: Network,
    codes: Mapping[str, LayerCodes],
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """Build the QONNX model.

    Parameters
    ----------
    simulation : the quantized network in float, from `simulate.simulation`
    network : its layers
    codes : constants of the layers, from `layer_codes`
    metadata : entries added to the metadata_props of the float model

    Returns
    -------
    onnx.ModelProto
    """
    model = onnx.ModelProto()
    model.CopyFrom(simulation)
    constants = initializers_of(model.graph)
    writer = {output: node for node in model.graph.node for output in node.output}
    layers = {layer.name: layer for layer in network.layers if layer.weight is not None}
    nodes: list[NodeProto] = []

    def constant(name: str, value: npt.NDArray[np.floating] | float) -> str:
        if name not in constants:
            constants[name] = numpy_helper.from_array(np.asarray(value, dtype=np.float32), name)
            model.graph.initializer.append(constants[name])
        return name

    def quant(
        source: str, scale: str, zero_point: str, bits: int, output: str, *, signed: int, narrow: int
    ) -> NodeProto:
        inputs = [source, scale, zero_point, constant(f"quant/bits_{bits}", float(bits))]
        return helper.make_node(
            "Quant",
            inputs,
            [output],
            name=output,
            domain=QONNX_DOMAIN,
            rounding_mode="ROUND",
            signed=signed,
            narrow=narrow,
        )

    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or _clips_codes(node, writer):
            if node.op_type == "DequantizeLinear":
                first, bits = _quantizer(node, writer, constants)
                zero_point = constant(f"{node.input[2]}/float", float(to_array(constants[node.input[2]])))
                nodes.append(quant(first.input[0], node.input[1], zero_point, bits, node.output[0], signed=0, narrow=0))
            continue
        if layer := layers.get(node.name):
            held = codes[layer.name]
            weight, axis, bits = str(layer.weight), int(layer.channel_axis or 0), held.rounded.bits
            steps = per_channel(held.scales, len(layer.weight_shape), axis)
            origins = narrow(held.rounded, axis).origins
            zero = constant("quant/zero", 0.0)
            if origins is not None:
                # adjacent fields are 2 codes apart, and the zero point is in units of fields
                zero, steps = constant(f"{weight}/zeros", origins.astype(np.float32) / -2), 2 * steps
            scale = constant(f"{weight}/scales", steps)
            # at 8 bits, the smallest code is not used: see quantize.grid
            not_lowest = int(bits == BASELINE_BITS)
            nodes.append(quant(weight, scale, zero, bits, f"{weight}/quant", signed=1, narrow=not_lowest))
            for index, tensor in enumerate(node.input):
                if tensor == weight:
                    node.input[index] = f"{weight}/quant"
        nodes.append(node)
    replace_nodes(model.graph, nodes)
    strip_documentation(model)
    remove_dead(model)
    model.opset_import.append(helper.make_opsetid(QONNX_DOMAIN, 1))
    model.producer_name, model.producer_version = "infoq-onnx", metadata.get("infoq_onnx.version", "")
    add_metadata(model, metadata)
    return model


def _clips_codes(node: NodeProto, writer: Mapping[str, NodeProto]) -> bool:
    return node.op_type == "Clip" and node.input[0] in writer and writer[node.input[0]].op_type == "QuantizeLinear"


def _quantizer(
    node: NodeProto, writer: Mapping[str, NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> tuple[NodeProto, int]:
    """Return the QuantizeLinear that belongs to a DequantizeLinear, and the number of bits of its codes."""
    source = writer[node.input[0]]
    if source.op_type != "Clip":
        return source, BASELINE_BITS
    largest = int(to_array(constants[input_at(source, 2)]))
    return writer[source.input[0]], largest.bit_length()


def require_qonnx() -> None:
    """Check that the package qonnx is installed, before weights are rounded for a file that could not be checked.

    Raises
    ------
    MissingDependencyError
        The package is not installed.
    """
    try:
        import qonnx.core.modelwrapper  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"{setting('file_format')} qonnx is checked by executing it with the package qonnx, which is not "
            "installed; pip install 'infoq-onnx[qonnx]'"
        ) from error


def verify_qonnx(
    model: onnx.ModelProto, graph: Graph, dataset: Dataset, simulation: onnx.ModelProto, name: str
) -> Verification:
    """Execute a model with the qonnx package and compare its logits with the simulation's.

    Parameters
    ----------
    model : the QONNX model
    graph : the normalised float graph of the model
    dataset : images
    simulation : the reference
    name : name of the file in messages

    Returns
    -------
    Verification

    Raises
    ------
    MissingDependencyError
        The package is not installed.
    VerificationError
        The logits differ by more than MAX_RELATIVE_RMS.
    """
    require_qonnx()
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    expected = logits_of(open_session(simulation, optimize=False), graph, dataset, batch_size(graph))
    size = graph.batch or 1
    wrapped = onnx.ModelProto()
    wrapped.CopyFrom(model)
    shape = [size, *(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:])]
    # qonnx executes node by node and needs every shape
    for value, dims in ((wrapped.graph.input[0], shape), (wrapped.graph.output[0], [size, *expected.shape[1:]])):
        value.CopyFrom(helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, dims))
    runner = ModelWrapper(wrapped).transform(InferShapes())
    logits = []
    # qonnx wraps each node in a model of the newest IR version, which onnxruntime may not support yet
    with _ir_version(graph.model.ir_version):
        for batch in dataset.batches(size):
            outputs = execute_onnx(runner, {graph.input: padded(batch, size)})
            logits.append(outputs[graph.output].reshape(size, -1)[: len(batch)])
    found = np.concatenate(logits)
    result = compare(expected, expected, found, found)
    if not result.relative_rms <= MAX_RELATIVE_RMS:
        raise VerificationError(
            f"{name}: executed by qonnx, the model disagrees with the simulation on {result.images} images "
            f"({100 * result.relative_rms:.1f} % of the logits' spread); no file was left: try another "
            f"{setting('rounding')} or {setting('file_format')}, or report it"
        )
    return result


@contextlib.contextmanager
def _ir_version(version: int) -> Iterator[None]:
    """Make onnx create models of a given IR version inside the block."""
    newest = onnx.IR_VERSION
    onnx.IR_VERSION = version  # type: ignore[assignment]
    try:
        yield
    finally:
        onnx.IR_VERSION = newest
