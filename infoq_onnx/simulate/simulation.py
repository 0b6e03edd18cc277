"""The whole network at given bit-widths, in float: what every other representation of it is checked against."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from infoq_onnx.graph.editing import with_initializers
from infoq_onnx.quantize.codes import CodeTable, RoundedWeight
from infoq_onnx.quantize.grid import (
    bias_scales,
    dequantize_bias,
    dequantize_weight,
    quantize_bias,
    quantize_weight,
)
from infoq_onnx.quantize.saturation import unsaturated
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.schema import Bits, Layer
from infoq_onnx.simulate.quantizers.calibrate import quantizers_of
from infoq_onnx.simulate.quantizers.insert import insert_quantizers
from infoq_onnx.simulate.quantizers.quantizable import Quantizable


@dataclass(frozen=True)
class LayerCodes:
    """A layer's constants as integers."""

    rounded: RoundedWeight
    """The weight; its real-valued bias stands for nothing here."""
    bias: npt.NDArray[np.int32] | None
    """None where there is none."""
    bias_scales: npt.NDArray[np.float32] | None
    """Of the shape of `bias`."""

    @property
    def weight(self) -> npt.NDArray[np.int8]:
        """Codes of the weight, in its shape."""
        return self.rounded.codes

    @property
    def scales(self) -> npt.NDArray[np.float32]:
        """Scales of the weight, [C]."""
        return self.rounded.scales

    def bias_values(self) -> npt.NDArray[np.float32] | None:
        """Return what is added to the outputs, [C]; None where nothing is, or what the float network adds."""
        if self.bias is None or self.bias_scales is None:
            return None
        return dequantize_bias(self.bias, self.bias_scales)


def layer_codes(
    of: Quantizable,
    bits: Bits,
    rounded: CodeTable | None = None,
    exact: Collection[str] = (),
) -> dict[str, LayerCodes]:
    """Codes of every layer's weight and bias, by layer.

    Parameters
    ----------
    of : the network
    bits : of every unit
    rounded : weights by layer and bits; a layer that is not in it gets its nearest codes
    exact : layers whose products must fit 16 bits in pairs, see `fitting`
    """
    codes = {}
    for layer in of.network.layers:
        if layer.weight is None or layer.channel_axis is None:
            continue
        width = bits.weights[layer.name]
        if rounded is not None and layer.name in rounded:
            held = rounded[layer.name][width]
        else:
            scales = of.grids.weights[layer.name][width]
            weight = quantize_weight(of.graph.constant(layer.weight), scales, width, layer.channel_axis)
            bias = None if layer.bias is None else of.graph.constant(layer.bias)
            held = RoundedWeight(weight, scales, width, bias=bias)
        if layer.name in exact:
            held = fitting(layer, held)
        codes[layer.name] = with_bias(layer, held, of.grids, bits.activations)
    return codes


def fitting(layer: Layer, held: RoundedWeight) -> RoundedWeight:
    """Make products of 8-bit codes fit 16 bits in pairs, as processors without VNNI need it.

    The layer is one whose nearest codes do fit. Rounding that knows its inputs may have gone beyond them by a step or
    two here and there.
    """
    codes = unsaturated(held.codes, int(layer.channel_axis or 0), convolution=layer.op_type == "Conv")
    return replace(held, codes=codes)


def with_bias(layer: Layer, held: RoundedWeight, table: GridTable, activation_bits: Mapping[str, int]) -> LayerCodes:
    """Join a rounded weight with its bias, which is an integer in units of the layer's input and weight scales.

    onnxruntime makes such an integer of every bias when it loads a file: of a Conv's and a Gemm's for their integer
    kernels, of a MatMul's where its shapes let it be a Gemm, and of a ConvTranspose's, which it then computes in float.
    Where it does not, the same values are added in float.
    """
    if held.bias is None:
        return LayerCodes(held, None, None)
    group = layer.groups[0]
    units = bias_scales(table.activations[group][activation_bits[group]].scale, held.scales)
    # a ConvTranspose in groups has a scale for each output of a group, and a bias for each of all groups
    units = np.tile(units, len(held.bias) // len(units))
    return LayerCodes(held, quantize_bias(held.bias, units), units)


def simulation(of: Quantizable, bits: Bits, *, codes: Mapping[str, LayerCodes] | None = None) -> onnx.ModelProto:
    """Build the float model that computes what the quantized network computes.

    Weights and biases are float values on their grids; activations pass QuantizeLinear and DequantizeLinear. It is
    meant to be run without integer kernels (`open_session(..., integer_kernels=False)`).

    Parameters
    ----------
    of : the network
    bits : of every unit
    codes : the layers' constants; None takes the nearest codes of `layer_codes`
    """
    quantizers = quantizers_of(of.grids, of.placement, bits.activations)
    model = insert_quantizers(of.graph, of.network, of.placement, quantizers)
    if codes is None:
        codes = layer_codes(of, bits)
    values: dict[str, npt.NDArray[np.float32]] = {}
    for layer in of.network.layers:
        if layer.weight is not None and layer.channel_axis is not None:
            held = codes[layer.name]
            values[layer.weight] = dequantize_weight(held.weight, held.scales, layer.channel_axis)
            bias = held.bias_values()
            if layer.bias is not None and bias is not None:
                values[layer.bias] = bias
    return with_initializers(model, values)
