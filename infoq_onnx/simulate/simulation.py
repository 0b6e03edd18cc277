"""The whole network at given bit-widths, in float: the reference for every other representation of the network."""

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
    """A layer's weight and bias as integers."""

    rounded: RoundedWeight
    """The rounded weight. `bias` replaces its real-valued bias."""
    bias: npt.NDArray[np.int32] | None
    """Codes of the bias [C]; None for a layer without a constant bias."""
    bias_scales: npt.NDArray[np.float32] | None
    """Scales of the bias, in the shape of `bias`."""

    @property
    def weight(self) -> npt.NDArray[np.int8]:
        """Codes of the weight, in its shape."""
        return self.rounded.codes

    @property
    def scales(self) -> npt.NDArray[np.float32]:
        """Scales of the weight, [C]."""
        return self.rounded.scales

    def bias_values(self) -> npt.NDArray[np.float32] | None:
        """Return the values of the bias [C]; None for a layer without a constant bias."""
        if self.bias is None or self.bias_scales is None:
            return None
        return dequantize_bias(self.bias, self.bias_scales)


def layer_codes(
    of: Quantizable,
    bits: Bits,
    rounded: CodeTable | None = None,
    exact: Collection[str] = (),
) -> dict[str, LayerCodes]:
    """Compute the codes of every layer's weight and bias.

    Parameters
    ----------
    of : the network
    bits : bit-width of every unit
    rounded : rounded weights by layer and bits; a layer missing here gets its nearest codes
    exact : layers whose pairs of products must fit 16 bits, see `fitting`

    Returns
    -------
    dict of str to LayerCodes
        By layer; only layers with a constant weight.
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
    """Adjust 8-bit codes so that pairs of products fit 16 bits, as processors without VNNI require.

    It is meant for layers whose nearest codes already fit. Input-dependent rounding may have moved some codes a step or
    two beyond their nearest values.

    Parameters
    ----------
    layer : the layer
    held : its rounded weight

    Returns
    -------
    RoundedWeight
        `held` with adjusted codes; see `quantize.saturation.unsaturated`.
    """
    codes = unsaturated(held.codes, int(layer.channel_axis or 0), convolution=layer.op_type == "Conv")
    return replace(held, codes=codes)


def with_bias(layer: Layer, held: RoundedWeight, table: GridTable, activation_bits: Mapping[str, int]) -> LayerCodes:
    """Quantize a layer's bias to integers in units of input scale · weight scale, and combine it with its weight.

    When onnxruntime loads a file, it converts biases to such integers: for Conv and Gemm because their integer kernels
    need them, for MatMul where its shapes allow a Gemm, and for ConvTranspose, although it then computes in float. In
    all other cases the same values are added in float.

    Parameters
    ----------
    layer : the layer
    held : its rounded weight, with a real-valued bias or None
    table : the grids of the network
    activation_bits : bit-width of each activation group

    Returns
    -------
    LayerCodes
    """
    if held.bias is None:
        return LayerCodes(held, None, None)
    group = layer.groups[0]
    units = bias_scales(table.activations[group][activation_bits[group]].scale, held.scales)
    # a grouped ConvTranspose has one scale per output channel of a group, but one bias per output channel of all groups
    units = np.tile(units, len(held.bias) // len(units))
    return LayerCodes(held, quantize_bias(held.bias, units), units)


def simulation(of: Quantizable, bits: Bits, *, codes: Mapping[str, LayerCodes] | None = None) -> onnx.ModelProto:
    """Build the float model that computes the same function as the quantized network.

    Weights and biases are float values on their grids; activations pass through QuantizeLinear and DequantizeLinear.
    Run the model without integer kernels (`open_session(..., integer_kernels=False)`).

    Parameters
    ----------
    of : the network
    bits : bit-width of every unit
    codes : codes of the layers' weights and biases; None uses the nearest codes, from `layer_codes`

    Returns
    -------
    onnx.ModelProto
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
