"""What the processor that a model is meant for asks of it.

Integer kernels of x86 processors without VNNI add products of 8-bit weights and 8-bit activations in 16 bits, where
they saturate (`quantize.saturation`), and then compute something else than was simulated. A file for such processors,
or for any, must have no layer in which that can happen. With 7 bits, of weights or of activations, it cannot, nor in a
depthwise convolution, whose kernels add in 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infoq_onnx.errors import SettingsError
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.operators import is_depthwise
from infoq_onnx.quantize.grid import quantize_weight
from infoq_onnx.quantize.saturation import any_saturated, kernel_rows
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.schema import BASELINE_BITS, Bits, Layer
from infoq_onnx.simulate.quantizers.quantizable import Quantizable

TARGETS: dict[str, bool] = {"any": True, "x86-avx2": True, "x86-vnni": False, "arm64": False}
"""Name → whether products must fit 16 bits in pairs."""

_CHUNK = 2**20
"""Weights that are looked at at once."""
_CPUINFO = Path("/proc/cpuinfo")


def require_target(name: str) -> None:
    """Make sure that there is such a target.

    Raises
    ------
    SettingsError
        There is none.
    """
    if name not in TARGETS:
        raise SettingsError(f"`target` {name}: choose {' or '.join(TARGETS)}")


def saturating_layers(of: Quantizable) -> frozenset[str]:
    """Find the layers that may saturate with 8-bit weights, rounded to nearest, and 8-bit activations.

    Parameters
    ----------
    of : the network

    Returns
    -------
    frozenset of str
        Names of layers.
    """
    return frozenset(
        layer.name
        for layer in of.network.layers
        if multiplies_in_pairs(of.graph, layer)
        and any(any_saturated(part) for part in _nearest(of.graph, layer, of.grids))
    )


def meeting_at_8_bits(of: Quantizable, bits: Bits) -> frozenset[str]:
    """Find the layers whose products must be made to fit: 8-bit weights that meet 8-bit activations in pairs."""
    return frozenset(
        layer.name
        for layer in of.network.layers
        if multiplies_in_pairs(of.graph, layer)
        and bits.weights[layer.name] == bits.activations[layer.groups[0]] == BASELINE_BITS
    )


def multiplies_in_pairs(graph: Graph, layer: Layer) -> bool:
    """Whether a layer has an integer kernel that adds products of weights and activations in pairs.

    ConvTranspose has no integer kernel, nor has a MatMul with its constant on the left.
    """
    if layer.weight is None or layer.channel_axis is None or layer.op_type == "ConvTranspose":
        return False
    node = graph.producer[layer.output]
    return node.input[1] == layer.weight and not is_depthwise(graph, node)


def _nearest(graph: Graph, layer: Layer, table: GridTable) -> Iterator[npt.NDArray[np.integer]]:
    """Nearest 8-bit codes of a layer's weight in the order of `kernel_rows`, some channels at a time.

    Most layers that saturate do so in the first few channels: large ones need not be rounded whole.
    """
    axis = int(layer.channel_axis or 0)
    weight, scales = graph.constant(str(layer.weight)), table.weights[layer.name][BASELINE_BITS]
    step = max(1, _CHUNK * len(scales) // max(1, weight.size))
    for start in range(0, len(scales), step):
        part = np.take(weight, range(start, min(start + step, len(scales))), axis=axis)
        codes = quantize_weight(part, scales[start : start + step], BASELINE_BITS, axis)
        yield kernel_rows(codes, axis, convolution=layer.op_type == "Conv")


def lacks_vnni(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether this processor is an x86 without VNNI; False where that cannot be told."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    return bool(flags) and not {"avx512_vnni", "avx_vnni", "avx_vnni_int8"}.intersection(flags)
