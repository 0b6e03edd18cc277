"""The Q/DQ model, which onnxruntime runs with integer kernels.

The model has the same quantizers as the simulation, in the same places. It differs from the simulation as follows:

- Weights are int8 codes followed by a per-channel DequantizeLinear. `emit.storage` defines how the file stores codes.
- Biases of convolutions are float values on the grid of the int32 bias of integer kernels. Biases of Gemm are int32
  codes followed by a DequantizeLinear.
- A Relu or Clip is removed if the following quantizer clips at the same values, because onnxruntime runs a convolution
  followed by Clip in float.
- A remaining Relu or Clip after a matrix product becomes Max and Min, because the product would otherwise run in float.
- A constant that an Add adds to a MatMul gets two axes, because onnxruntime would otherwise fuse both to a float Gemm.

Activations below 8 bits are QuantizeLinear → Clip on uint8 → DequantizeLinear, which integer kernels support.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from infoq_onnx.emit.storage import DOMAIN, Storage
from infoq_onnx.graph.compact import strip_documentation
from infoq_onnx.graph.editing import add_metadata, opset_of, replace_nodes, set_initializers, stamp_ir_version
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.operators import CONVOLUTIONS, clip_bounds
from infoq_onnx.graph.passes.remove_dead import remove_dead
from infoq_onnx.quantize.grid import clips_alike
from infoq_onnx.schema import Bits, Network
from infoq_onnx.simulate.quantizers.calibrate import quantizers_of
from infoq_onnx.simulate.quantizers.insert import Quantizers, insert_quantizers
from infoq_onnx.simulate.quantizers.placement import Placement
from infoq_onnx.simulate.quantizers.quantizable import Quantizable
from infoq_onnx.simulate.simulation import LayerCodes

_QUANTIZER = ("QuantizeLinear", "Clip", "DequantizeLinear")


def qdq_model(
    of: Quantizable,
    bits: Bits,
    codes: Mapping[str, LayerCodes],
    storage: Storage,
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """Build the Q/DQ model.

    Parameters
    ----------
    of : the network with its quantizers
    bits : bits of every unit
    codes : constants of the layers, from `layer_codes`
    storage : storage format of the weight codes
    metadata : entries added to the metadata_props of the float model

    Returns
    -------
    onnx.ModelProto
    """
    network, quantizers = of.network, quantizers_of(of.grids, of.placement, bits.activations)
    model = insert_quantizers(of.graph, network, of.placement, quantizers)
    if (opset := storage.opset(bits.weights.values())) > opset_of(model):
        model = onnx.version_converter.convert_version(model, opset)
        stamp_ir_version(model)
    _drop_redundant_clips(model, of.graph, of.placement, quantizers)
    _store_codes(model, network, codes, storage)
    _keep_sums_apart(model, network)
    _clip_by_bounds(model, network)
    for node in model.graph.node:
        if (node.op_type in _QUANTIZER or node.domain == DOMAIN) and node.name == node.output[0]:
            # these names repeat the output's name, a hundred times in a small file: save the space
            node.name = ""
    strip_documentation(model)
    # the bounds of dropped Clips, among others: onnxruntime warns of what nothing reads
    remove_dead(model)
    model.producer_name, model.producer_version = "infoq-onnx", metadata.get("infoq_onnx.version", "")
    add_metadata(model, metadata)
    return model


def _store_codes(
    model: onnx.ModelProto,
    network: Network,
    codes: Mapping[str, LayerCodes],
    storage: Storage,
) -> None:
    """Replace float weights by codes and DequantizeLinear, and biases by codes or rounded floats, in place."""
    layers = {layer.name: layer for layer in network.layers if layer.name in codes}
    opset = opset_of(model)
    writer = {output: node for node in model.graph.node for output in node.output}
    replaced: set[str] = set()
    functions: dict[str, onnx.FunctionProto] = {}
    floats: dict[str, npt.NDArray[np.float32]] = {}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if layer := layers.get(node.name):
            held = codes[layer.name]
            axis = int(layer.channel_axis or 0)
            stored = storage.store(str(layer.weight), held.rounded, axis, opset)
            model.graph.initializer.extend(stored.initializers)
            if stored.node is not None:
                nodes.append(stored.node)
            if stored.function is not None:
                functions[stored.function.name] = stored.function
            scales = _constant(model, f"{layer.weight}/scales", held.scales)
            # a missing zero point means 0; convolutions still become integer kernels, matrix products do not
            zeros = [] if node.op_type in CONVOLUTIONS else [_constant(model, f"{layer.weight}/zeros", _zeros(held))]
            values = _dequantized(str(layer.weight), [stored.output, scales, *zeros], axis)
            nodes.append(values)
            constants = {layer.weight: values.output[0]}
            if held.bias is not None and node.op_type == "Gemm":
                # onnxruntime computes the scales of the bias when it loads the model, so they take no space in the file
                bias = _constant(model, f"{layer.bias}/codes", held.bias)
                units = helper.make_node("Mul", [scales, writer[node.input[0]].input[1]], [f"{layer.bias}/scales"])
                values = _dequantized(str(layer.bias), [bias, units.output[0]], 0)
                nodes += [units, values]
                constants[layer.bias] = values.output[0]
            elif layer.bias is not None and (values_added := held.bias_values()) is not None:
                # on the int32 grid: onnxruntime computes the codes itself if it makes an integer kernel of a
                # convolution, or of a MatMul and the following Add. A Gemm with a float bias would run in float
                floats[layer.bias] = values_added
            for index, tensor in enumerate(node.input):
                if tensor in constants:
                    node.input[index] = constants[tensor]
            replaced.update(str(name) for name in constants)
        nodes.append(node)
    replace_nodes(model.graph, nodes)
    set_initializers(model, floats)
    for initializer in [tensor for tensor in model.graph.initializer if tensor.name in replaced]:
        model.graph.initializer.remove(initializer)
    if functions:
        model.functions.extend(functions[name] for name in sorted(functions))
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def _keep_sums_apart(model: onnx.ModelProto, network: Network) -> None:
    """Give constants [C] that an Add adds to a MatMul the shape [1, C], in place.

    If all shapes are known, as with a fixed batch, onnxruntime fuses a MatMul and an Add of [C] to a float Gemm
    (MatMulAddFusion) before it looks for integer kernels. It does not fuse other shapes.
    """
    products = {layer.output for layer in network.layers if layer.op_type == "MatMul"}
    rows = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) == 1}
    lifted: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type != "Add" or products.isdisjoint(node.input):
            continue
        for index, name in enumerate(node.input):
            if name in rows:
                if name not in lifted:
                    values = numpy_helper.to_array(rows[name])
                    lifted[name] = _constant(model, f"{name}/row", values[None])
                node.input[index] = lifted[name]


def _clip_by_bounds(model: onnx.ModelProto, network: Network) -> None:
    """Replace every Relu and Clip after a matrix product by Max and Min, in place.

    onnxruntime fuses a matrix product with its Relu or Clip, and runs both in float unless a following quantizer does
    the clipping.
    """
    products = {layer.output for layer in network.layers if layer.op_type in ("Gemm", "MatMul")}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        bounds: list[tuple[str, str]] = []
        if node.input and node.input[0] in products:
            if node.op_type == "Relu":
                bounds = [("Max", _constant(model, f"{node.output[0]}/lowest", np.array(0, dtype=np.float32)))]
            elif node.op_type == "Clip":
                bounds = [(kind, name) for kind, name in zip(("Max", "Min"), node.input[1:], strict=False) if name]
        tensor = node.input[0] if node.input else ""
        for index, (kind, bound) in enumerate(bounds):
            last = index == len(bounds) - 1
            result = node.output[0] if last else f"{node.output[0]}/above"
            nodes.append(helper.make_node(kind, [tensor, bound], [result], node.name if last else ""))
            tensor = result
        if not bounds:
            nodes.append(node)
    replace_nodes(model.graph, nodes)


def _constant(model: onnx.ModelProto, name: str, values: npt.NDArray[np.generic]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def _zeros(held: LayerCodes) -> npt.NDArray[np.int8]:
    return np.zeros(held.scales.shape, dtype=np.int8)


def _dequantized(name: str, inputs: list[str], axis: int) -> onnx.NodeProto:
    # no node name: the names of 2 nodes per layer take considerable space in a small file
    return helper.make_node("DequantizeLinear", inputs, [f"{name}/values"], axis=axis)


def _drop_redundant_clips(model: onnx.ModelProto, graph: Graph, placement: Placement, quantizers: Quantizers) -> None:
    """Remove every Relu and Clip whose following quantizer clips at the same values, in place."""
    dropped: dict[str, str] = {}
    for node in model.graph.node:
        output = node.output[0]
        if output in placement.fused:
            quantizer = quantizers.groups[output] if output in placement.direct else quantizers.storage[output]
            if clips_alike(quantizer, *clip_bounds(graph, graph.producer[output])):
                # the input in this model, since another such node and a quantizer may precede the node
                dropped[output] = node.input[0]
    for node in model.graph.node:
        for index, tensor in enumerate(node.input):
            if tensor in dropped:
                node.input[index] = dropped[tensor]
    replace_nodes(model.graph, [node for node in model.graph.node if node.output[0] not in dropped])
