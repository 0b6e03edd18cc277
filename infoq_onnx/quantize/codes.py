"""Rounded weights of every layer at every bit-width, each independent of the other layers; their file `codes.npz`."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infoq_onnx.errors import AnalysisError
from infoq_onnx.files import write_bytes
from infoq_onnx.quantize.archive import ABOVE_ZERO, UNREADABLE, checked, checked_bits, damaged
from infoq_onnx.schema import Network


@dataclass(frozen=True)
class RoundedWeight:
    """A layer's rounded weight and the matching bias: value = code · scale of the channel."""

    codes: npt.NDArray[np.int8]
    """Codes, in the weight's shape."""
    scales: npt.NDArray[np.float32]
    """[C], one per output channel."""
    bits: int
    """A channel has at most 2^bits levels."""
    origins: npt.NDArray[np.int8] | None = None
    """[C], the lowest level in use of each channel, whose levels are 2 codes apart (`quantize.levels`). None: codes are
    two's-complement integers of `bits` bits."""
    bias: npt.NDArray[np.float64] | None = None
    """[C], real-valued; None for a layer without a bias."""


_EVERY = 5.0
"""Minimum seconds between two saves of a growing table …"""
_TIMES = 20
"""… or this many times the duration of the last save, whichever is longer."""

CodeTable = dict[str, dict[int, RoundedWeight]]
"""Layer → bits → rounded weight."""


def save_codes(table: CodeTable, path: Path, analysis: str = "") -> None:
    """Write a table to a file; equal tables give identical bytes.

    Parameters
    ----------
    table : the rounded weights
    path : file to write
    analysis : fingerprint of the analysis that the table belongs to
    """
    entries = [(layer, bits) for layer, widths in table.items() for bits in widths]
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "layers": np.array([layer for layer, _ in entries], dtype=np.str_),
        "bits": np.array([bits for _, bits in entries], dtype=np.int64),
        "analysis": np.array([analysis], dtype=np.str_),
        "biased": np.array([table[layer][bits].bias is not None for layer, bits in entries], dtype=np.bool_),
        "shifted": np.array([table[layer][bits].origins is not None for layer, bits in entries], dtype=np.bool_),
    }
    for index, (layer, bits) in enumerate(entries):
        held = table[layer][bits]
        arrays[f"codes_{index}"], arrays[f"scales_{index}"] = held.codes, held.scales
        if held.bias is not None:
            arrays[f"bias_{index}"] = held.bias
        if held.origins is not None:
            arrays[f"origins_{index}"] = held.origins
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


class Keeper:
    """Saves a growing table at intervals, so that saving takes at most about 5 % of the time.

    Parameters
    ----------
    path : file to write
    analysis : fingerprint of the analysis that the table belongs to
    """

    def __init__(self, path: Path, analysis: str) -> None:
        self._path, self._analysis = path, analysis
        self._due = time.monotonic() + _EVERY

    def __call__(self, table: CodeTable) -> None:
        """Save the table if a save is due."""
        start = time.monotonic()
        if start >= self._due:
            save_codes(table, self._path, self._analysis)
            end = time.monotonic()
            self._due = end + max(_EVERY, _TIMES * (end - start))


def load_codes(path: Path, network: Network | None = None, analysis: str | None = None) -> CodeTable:
    """Read a table from a file.

    Parameters
    ----------
    path : file to read
    network : the network whose layers it has to fit; None: any
    analysis : required fingerprint of the analysis; None accepts any

    Raises
    ------
    AnalysisError
        The file is missing, damaged or belongs to another analysis.
    """
    table: CodeTable = {}
    known = {layer.name: layer for layer in network.layers} if network is not None else {}
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            if analysis is not None and ("analysis" not in arrays or arrays["analysis"].tolist() != [analysis]):
                raise AnalysisError(f"{path} is of another analysis; run analyze again")
            for index, (name, bits) in enumerate(zip(arrays["layers"], arrays["bits"], strict=True)):
                layer = known.get(str(name))
                shape = None if layer is None else layer.weight_shape
                channels = None if layer is None else layer.channels
                codes = checked(arrays[f"codes_{index}"], f"codes of {name}", np.int8, shape)
                scales = checked(arrays[f"scales_{index}"], f"scales of {name}", np.float32, (channels,), ABOVE_ZERO)
                bias = origins = None
                if arrays["biased"][index]:
                    bias = checked(arrays[f"bias_{index}"], f"bias of {name}", np.float64, scales.shape)
                if arrays["shifted"][index]:
                    origins = checked(arrays[f"origins_{index}"], f"origins of {name}", np.int8, scales.shape)
                width = checked_bits(bits)
                table.setdefault(str(name), {})[width] = RoundedWeight(codes, scales, width, origins, bias)
    except UNREADABLE as error:
        raise damaged(path, error) from error
    return table
