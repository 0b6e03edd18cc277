"""Target processors, and the layers whose sums may saturate on them.

On x86 processors without VNNI, integer kernels add products of 8-bit weights and 8-bit activations in 16 bits. The sums
can saturate (`quantize.saturation`), and the result then differs from the simulation. A file for these processors, or
for any processor, must have no layer that can saturate. Layers with weights or activations of at most 7 bits cannot
saturate; nor can depthwise convolutions, whose kernels add in 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infoq_onnx.errors import SettingsError, setting
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.operators import is_depthwise
from infoq_onnx.quantize.grid import quantize_weight
from infoq_onnx.quantize.saturation import any_saturated, kernel_rows
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.schema import BASELINE_BITS, Bits, Layer
from infoq_onnx.simulate.quantizers.quantizable import Quantizable

TARGETS: dict[str, bool] = {"any": True, "x86-avx2": True, "x86-vnni": False, "arm64": False}
"""Name → whether the sum of each pair of products must fit 16 bits."""

_CHUNK = 2**20
"""Number of weights that are checked at once."""
_CPUINFO = Path("/proc/cpuinfo")


def require_target(name: str) -> None:
    """Check that a target exists.

    Raises
    ------
    SettingsError
        The target does not exist.
    """
    if name not in TARGETS:
        raise SettingsError(f"{setting('target')} {name}: choose {' or '.join(TARGETS)}")


def saturating_layers(of: Quantizable) -> frozenset[str]:
    """Find the layers that may saturate with 8-bit weights, rounded to nearest, and 8-bit activations.

    Parameters
    ----------
    of : the network with its quantizers

    Returns
    -------
    frozenset of str
        Names of the layers.
    """
    return frozenset(
        layer.name
        for layer in of.network.layers
        if multiplies_in_pairs(of.graph, layer)
        and any(any_saturated(part) for part in _nearest(of.graph, layer, of.grids))
    )


def meeting_at_8_bits(of: Quantizable, bits: Bits) -> frozenset[str]:
    """Return the names of the layers that multiply 8-bit weights and 8-bit activations in pairs and can saturate."""
    return frozenset(
        layer.name
        for layer in of.network.layers
        if multiplies_in_pairs(of.graph, layer)
        and bits.weights[layer.name] == bits.activations[layer.groups[0]] == BASELINE_BITS
    )


def multiplies_in_pairs(graph: Graph, layer: Layer) -> bool:
    """Return whether a layer has an integer kernel that adds products of weights and activations in pairs.

    ConvTranspose, and MatMul with its constant on the left, have no integer kernel.
    """
    if layer.weight is None or layer.channel_axis is None or layer.op_type == "ConvTranspose":
        return False
    node = graph.producer[layer.output]
    return node.input[1] == layer.weight and not is_depthwise(graph, node)


def _nearest(graph: Graph, layer: Layer, table: GridTable) -> Iterator[npt.NDArray[np.integer]]:
    """Yield the nearest 8-bit codes of a layer's weight in the order of `kernel_rows`, some channels at a time.

    Most layers that saturate do so in the first few channels, so large layers need not be rounded completely.
    """
    axis = int(layer.channel_axis or 0)
    weight, scales = graph.constant(str(layer.weight)), table.weights[layer.name][BASELINE_BITS]
    step = max(1, _CHUNK * len(scales) // max(1, weight.size))
    for start in range(0, len(scales), step):
        part = np.take(weight, range(start, min(start + step, len(scales))), axis=axis)
        codes = quantize_weight(part, scales[start : start + step], BASELINE_BITS, axis)
        yield kernel_rows(codes, axis, convolution=layer.op_type == "Conv")


def lacks_vnni(cpuinfo: Path = _CPUINFO) -> bool:
    """Return whether this processor is an x86 without VNNI; False if that is unknown."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    return bool(flags) and not {"avx512_vnni", "avx_vnni", "avx_vnni_int8"}.intersection(flags)
