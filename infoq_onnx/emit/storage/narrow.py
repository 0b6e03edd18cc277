"""Weight codes in b bits each, as the index of the level (field) and the position of each channel's levels (origin).

Rounding to nearest gives codes that are b-bit integers. Rounding that uses the layer's inputs places the levels of each
channel (`quantize.levels`). These codes are 2 apart, and code = 2 · field + origin; field 0 is the middle level. If all
codes of a weight fit b bits unchanged, no origins are stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper

from infoq_onnx.quantize.codes import RoundedWeight
from infoq_onnx.quantize.grid import per_channel


@dataclass(frozen=True)
class Narrow:
    """Codes in b bits each."""

    fields: npt.NDArray[np.int8]
    """−2^(b−1) … 2^(b−1) − 1, in the weight's shape."""
    origins: npt.NDArray[np.int8] | None
    """[C], broadcast along the channel axis; None if the fields are the codes."""


def narrow(held: RoundedWeight, axis: int) -> Narrow:
    """Compute the fields and origins of a weight.

    Parameters
    ----------
    held : the rounded weight
    axis : channel axis of the weight

    Returns
    -------
    Narrow

    Raises
    ------
    ValueError
        The codes do not fit b bits and are not on the levels given by the weight's origins.
    """
    half = 1 << (held.bits - 1)
    wide = held.codes.astype(np.int16)
    if wide.size == 0 or (wide.min() >= -half and wide.max() < half):
        return Narrow(held.codes, None)
    if held.origins is None:
        raise ValueError(f"codes from {wide.min()} to {wide.max()} do not fit {held.bits} bits")
    origins = per_channel(held.origins.astype(np.int16) + 2 * half, wide.ndim, axis)
    fields, odd = np.divmod(wide - origins, 2)
    if odd.any() or fields.min() < -half or fields.max() >= half:
        raise ValueError(f"codes from {wide.min()} to {wide.max()} are not on the levels of their channels")
    return Narrow(fields.astype(np.int8), origins.astype(np.int8))


def shift_nodes(fields: str, origins: str, output: str) -> list[NodeProto]:
    """Return the nodes that compute int8 codes from int32 fields and int8 origins."""
    return [
        helper.make_node("Add", [fields, fields], [f"{output}_doubled"]),
        helper.make_node("Cast", [origins], [f"{output}_origins"], to=TensorProto.INT32),
        helper.make_node("Add", [f"{output}_doubled", f"{output}_origins"], [f"{output}_shifted"]),
        helper.make_node("Cast", [f"{output}_shifted"], [output], to=TensorProto.INT8),
    ]
