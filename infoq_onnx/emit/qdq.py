"""The Q/DQ model that onnxruntime runs with integer kernels.

It has the quantizers of the simulation, in the same places. What differs is how things are held:

- weights are int8 codes and biases int32 codes, each behind a per-channel DequantizeLinear;
- a Relu or Clip in front of a quantizer that clips at the same values is left out, since onnxruntime keeps the
  convolution in front of a standing Clip in float.

Activations below 8 bits are QuantizeLinear → Clip on uint8 → DequantizeLinear, which stays on the integer path.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from infoq_onnx.graph.editing import replace_nodes
from infoq_onnx.graph.graph import Graph
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.schema import Network, Quantizer
from infoq_onnx.simulate.calibrate import quantizers_of
from infoq_onnx.simulate.insert import Quantizers, insert_quantizers
from infoq_onnx.simulate.placement import Placement, clip_bounds
from infoq_onnx.simulate.simulation import LayerCodes


def qdq_model(
    graph: Graph,
    network: Network,
    placement: Placement,
    table: GridTable,
    activation_bits: Mapping[str, int],
    codes: Mapping[str, LayerCodes],
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """Build the model.

    Parameters
    ----------
    graph, network, placement, table : the network and its grids
    activation_bits : bits of every group
    codes : the layers' constants, from `layer_codes`
    metadata : entries for metadata_props

    Returns
    -------
    onnx.ModelProto
    """
    quantizers = quantizers_of(table, placement, dict(activation_bits))
    model = insert_quantizers(graph, network, placement, quantizers)
    _drop_redundant_clips(model, graph, placement, quantizers)
    _store_codes(model, network, codes)
    del model.graph.value_info[:]
    model.producer_name, model.producer_version = "infoq-onnx", metadata.get("infoq_onnx.version", "")
    helper.set_model_props(model, dict(metadata))
    return model


Constant = tuple[str | None, npt.NDArray[np.generic], npt.NDArray[np.float32] | None, int | None]
"""Name, codes, scales, axis."""


def _store_codes(model: onnx.ModelProto, network: Network, codes: Mapping[str, LayerCodes]) -> None:
    """Replace float weights and biases by codes behind DequantizeLinear, in place."""
    layers = {layer.name: layer for layer in network.layers if layer.name in codes}
    replaced: set[str] = set()
    stored: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if layer := layers.get(node.name):
            held = codes[layer.name]
            constants: list[Constant] = [(layer.weight, held.weight, held.scales, layer.channel_axis)]
            if held.bias is not None:
                constants.append((layer.bias, held.bias, held.bias_scales, 0))
            for name, values, scales, axis in constants:
                tensors, dequantize = _dequantized(str(name), values, scales, axis)
                stored += tensors
                nodes.append(dequantize)
                replaced.add(str(name))
                for index, tensor in enumerate(node.input):
                    if tensor == name:
                        node.input[index] = dequantize.output[0]
        nodes.append(node)
    replace_nodes(model.graph, nodes)
    for initializer in [tensor for tensor in model.graph.initializer if tensor.name in replaced]:
        model.graph.initializer.remove(initializer)
    model.graph.initializer.extend(stored)


def _dequantized(
    name: str, codes: npt.NDArray[np.generic], scales: npt.NDArray[np.float32] | None, axis: int | None
) -> tuple[list[onnx.TensorProto], onnx.NodeProto]:
    """Codes of an initializer with their scales, and the node that turns them into values."""
    units = np.asarray(scales, dtype=np.float32)
    arrays = {f"{name}/codes": codes, f"{name}/scales": units, f"{name}/zero_points": np.zeros_like(units, codes.dtype)}
    tensors = [numpy_helper.from_array(np.ascontiguousarray(values), key) for key, values in arrays.items()]
    output = f"{name}/dequantized"
    return tensors, helper.make_node("DequantizeLinear", list(arrays), [output], name=output, axis=axis)


def _drop_redundant_clips(model: onnx.ModelProto, graph: Graph, placement: Placement, quantizers: Quantizers) -> None:
    """Leave out every Relu and Clip whose clipping the quantizer behind it does as well, in place."""
    dropped: dict[str, str] = {}
    for output, source in placement.absorbed.items():
        quantizer = quantizers.groups[output] if output in placement.direct else quantizers.storage[output]
        if clips_alike(quantizer, *clip_bounds(graph, graph.producer[output])):
            dropped[output] = source
    for node in model.graph.node:
        for index, tensor in enumerate(node.input):
            if tensor in dropped:
                node.input[index] = dropped[tensor]
    replace_nodes(model.graph, [node for node in model.graph.node if node.output[0] not in dropped])


def clips_alike(quantizer: Quantizer, low: float, high: float) -> bool:
    """Whether quantizing gives the same codes with and without a Clip to [low, high] in front, low being 0."""
    last = (1 << quantizer.bits) - 1
    return quantizer.zero_point == 0 and low == 0.0 and round(min(high / quantizer.scale, 2.0 * last)) >= last
