"""All grids of a network at every bit-width, and their file: `ranges.npz` of an analysis."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infoq_onnx.files import write_bytes
from infoq_onnx.quantize.archive import ABOVE_ZERO, UNREADABLE, checked, checked_bits, damaged
from infoq_onnx.schema import Network, Quantizer


@dataclass(frozen=True)
class GridTable:
    """Grids found from the float model. The grid at each bit-width is found separately, not derived from 8 bits."""

    activations: dict[str, dict[int, Quantizer]]
    """Tensor → bits → quantizer."""
    weights: dict[str, dict[int, npt.NDArray[np.float32]]]
    """Layer → bits → scales [C]."""
    factors: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """Tensor → equalisation factors of its channels [C]. The grids are those of the equalised network; see
    `simulate.equalization.equalize`."""


def save_table(table: GridTable, path: Path) -> None:
    """Write a table to a file; equal tables give identical bytes."""
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "tensors": np.array(list(table.activations), dtype=np.str_),
        "layers": np.array(list(table.weights), dtype=np.str_),
    }
    # one row per quantizer: tensor index, bits, scale, zero point; every value is exact in float64
    rows = [
        (index, quantizer.bits, quantizer.scale, quantizer.zero_point)
        for index, grids in enumerate(table.activations.values())
        for quantizer in grids.values()
    ]
    arrays["activations"] = np.array(rows, dtype=np.float64).reshape(-1, 4)
    widths = [(index, bits) for index, scales in enumerate(table.weights.values()) for bits in scales]
    arrays["widths"] = np.array(widths, dtype=np.int64).reshape(-1, 2)
    for index, scales in enumerate(table.weights.values()):
        for bits, values in scales.items():
            arrays[f"weight_{index}_{bits}"] = values
    arrays["equalized"] = np.array(list(table.factors), dtype=np.str_)
    for index, factors in enumerate(table.factors.values()):
        arrays[f"factors_{index}"] = factors
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def load_table(path: Path, network: Network | None = None) -> GridTable:
    """Read a table from a file.

    Parameters
    ----------
    path : the file
    network : the network whose layers it has to fit; None: any

    Raises
    ------
    AnalysisError
        The file is missing or damaged.
    """
    channels = {layer.name: layer.channels for layer in network.layers} if network is not None else {}
    try:
        # read the bytes first: numpy leaves a damaged file open
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            tensors, layers = [str(t) for t in arrays["tensors"]], [str(n) for n in arrays["layers"]]
            activations: dict[str, dict[int, Quantizer]] = {tensor: {} for tensor in tensors}
            for index, width, scale, zero_point in checked(arrays["activations"], "ranges", np.float64, (None, 4)):
                quantizer = Quantizer(checked_bits(width), float(scale), int(zero_point))
                if (
                    scale < ABOVE_ZERO
                    or zero_point != quantizer.zero_point
                    or not 0 <= zero_point < 1 << quantizer.bits
                ):
                    raise ValueError(f"scale {scale:g}, zero point {zero_point:g} at {width:g} bits")
                activations[_entry(tensors, index)][quantizer.bits] = quantizer
            weights: dict[str, dict[int, npt.NDArray[np.float32]]] = {layer: {} for layer in layers}
            for index, width in checked(arrays["widths"], "bits of weights", np.int64, (None, 2)):
                layer = _entry(layers, index)
                shape = (channels.get(layer),)
                scales = checked(arrays[f"weight_{index}_{width}"], f"scales of {layer}", np.float32, shape, ABOVE_ZERO)
                weights[layer][checked_bits(width)] = scales
            factors = {
                str(tensor): checked(
                    arrays[f"factors_{index}"], f"factors of {tensor}", np.float32, (None,), ABOVE_ZERO
                )
                for index, tensor in enumerate(arrays["equalized"])
            }
    except UNREADABLE as error:
        raise damaged(path, error) from error
    return GridTable(activations, weights, factors)


def _entry(names: list[str], index: float) -> str:
    if not 0 <= index < len(names) or index != int(index):
        raise ValueError(f"entry {index:g} of {len(names)}")
    return names[int(index)]
