"""Read the codes of weights and biases back from an emitted Q/DQ model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from infoq_onnx.emit.storage import DOMAIN
from infoq_onnx.errors import ModelError
from infoq_onnx.graph.editing import consumers_of, initializers_of, producers_of, to_array
from infoq_onnx.graph.ort import ORT_ERRORS, first_line, run_session
from infoq_onnx.graph.session import open_session
from infoq_onnx.quantize.codes import RoundedWeight
from infoq_onnx.quantize.grid import bias_scales, dequantize_bias, quantize_bias
from infoq_onnx.schema import Bits, Layer
from infoq_onnx.simulate.quantizers.quantizable import Quantizable
from infoq_onnx.simulate.simulation import LayerCodes


def read_codes(model: onnx.ModelProto, of: Quantizable, bits: Bits, name: str) -> dict[str, LayerCodes]:
    """Read the codes of every layer from a Q/DQ model that `allocate` wrote, in any storage.

    Parameters
    ----------
    model : the model
    of : the network that it was made of
    bits : bit-width of every unit
    name : name of its file in messages

    Returns
    -------
    dict of str to LayerCodes
        By layer; only layers with a constant weight.

    Raises
    ------
    ModelError
        It is not the emitted model of this network at these bits.
    """
    try:
        return _Reader(model).codes(of, bits)
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(
            f"{name} is not the model of this allocation as infoq-onnx wrote it ({error}); run allocate again"
        ) from error
    except ORT_ERRORS as error:
        raise ModelError(f"onnxruntime cannot run {name} ({first_line(error)}); run allocate again") from error


class _Reader:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._producers, self._constants = producers_of(model.graph), initializers_of(model.graph)
        self._consumers = consumers_of(model.graph)

    def codes(self, of: Quantizable, bits: Bits) -> dict[str, LayerCodes]:
        layers = [layer for layer in of.network.layers if layer.weight is not None and layer.channel_axis is not None]
        dequantized = {layer.name: self._dequantized(of, layer) for layer in layers}
        unpacked = self._unpacked({node.input[0] for node in dequantized.values()})
        found = {}
        for layer in layers:
            node = dequantized[layer.name]
            codes, scales = unpacked[node.input[0]], to_array(self._constants[node.input[1]])
            if codes.shape != layer.weight_shape or codes.dtype != np.int8:
                raise ValueError(f"the weight of {layer.name} has {codes.shape} codes of {codes.dtype}")
            width = bits.weights[layer.name]
            origins = self._origins(node.input[0], width)
            if origins is None:
                origins = _lowest(codes, int(layer.channel_axis or 0), width)
            units = bias_scales(of.grids.activations[layer.groups[0]][bits.activations[layer.groups[0]]].scale, scales)
            bias = self._bias(layer, units)
            values = None if bias is None else dequantize_bias(*bias).astype(np.float64)
            held = RoundedWeight(codes, scales, width, origins, values)
            found[layer.name] = LayerCodes(held, *(bias or (None, None)))
        return found

    def _dequantized(self, of: Quantizable, layer: Layer) -> onnx.NodeProto:
        slot = list(of.graph.producer[layer.output].input).index(layer.weight)
        product = self._producers.get(layer.output)
        if product is None:
            raise ValueError(f"it has no layer {layer.name}")
        node = self._producers.get(product.input[slot])
        if node is None or node.op_type != "DequantizeLinear":
            raise ValueError(f"the weight of {layer.name} is not dequantized")
        return node

    def _unpacked(self, names: set[str]) -> dict[str, npt.NDArray[Any]]:
        """Return codes by the name of their tensor; what is packed is unpacked by the file's own functions."""
        found = {name: to_array(self._constants[name]) for name in names if name in self._constants}
        nodes = [self._producers[name] for name in sorted(names - set(found))]
        if nodes:
            read = {name for node in nodes for name in node.input}
            outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.INT8, None) for node in nodes]
            graph = helper.make_graph(nodes, "codes", [], outputs, [self._constants[name] for name in sorted(read)])
            model = helper.make_model(
                graph,
                opset_imports=self._model.opset_import,
                functions=self._model.functions,
                ir_version=self._model.ir_version,
            )
            wanted = [node.output[0] for node in nodes]
            found.update(zip(wanted, run_session(open_session(model), {}, wanted), strict=True))
        return found

    def _origins(self, name: str, width: int) -> npt.NDArray[np.int8] | None:
        node = self._producers.get(name)
        if node is None or node.domain != DOMAIN or not node.op_type.endswith(("Shift", "Shifted")):
            return None
        # stored is the middle level, see `emit.storage.narrow`
        stored = to_array(self._constants[node.input[-1]]).astype(np.int16).ravel()
        origins: npt.NDArray[np.int8] = (stored - (1 << width)).astype(np.int8)
        return origins

    def _bias(
        self, layer: Layer, units: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]] | None:
        if layer.bias is None:
            return None
        node = self._producers[layer.output]
        if layer.op_type == "MatMul":
            added = self._consumers[layer.output][0]
            name = next(name for name in added.input if name in self._constants)
        else:
            name = node.input[2]
        if name in self._producers:
            codes: npt.NDArray[np.int32] = to_array(self._constants[self._producers[name].input[0]])
            return codes, units
        values = to_array(self._constants[name]).reshape(-1)
        units = np.tile(units, len(values) // len(units))
        return quantize_bias(values, units), units


def _lowest(codes: npt.NDArray[np.int8], axis: int, width: int) -> npt.NDArray[np.int8] | None:
    """Return origins for codes that are stored as bytes; None where they are integers of their bits."""
    half = 1 << (width - 1)
    if codes.size == 0 or width == 8 or (codes.min() >= -half and codes.max() < half):
        return None
    rows = np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1).astype(np.int16)
    lowest = rows.min(axis=1)
    if ((rows - lowest[:, None]) % 2).any() or (rows.max(axis=1) - lowest > 2 * (2 * half - 1)).any():
        raise ValueError(f"codes from {codes.min()} to {codes.max()} are not of {width} bits")
    origins: npt.NDArray[np.int8] = lowest.astype(np.int8)
    return origins
