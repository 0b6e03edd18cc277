"""Weight scales with the least squared error, one per output channel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infoq_onnx.quantize.grid import FloatArray
from infoq_onnx.quantize.im2col import to_rows
from infoq_onnx.quantize.levels import search_levels


def weight_scales(weight: FloatArray, bits: int, axis: int) -> npt.NDArray[np.float32]:
    """Find the per-channel scales with the least squared error of nearest codes.

    Parameters
    ----------
    weight : float array, any shape
    bits : bit-width, 2 … 8
    axis : output-channel axis

    Returns
    -------
    float32 array [C]
        C = weight.shape[axis]; all positive and finite. A channel of zeros gets the largest scale of the other
        channels (1 if all are zero): any scale represents its weights, but its bias is stored in units of the scale.
    """
    rows = to_rows(weight, axis, 1)
    levels = search_levels(rows, np.ones((1, rows.shape[2])), bits, shifted=False)
    scales: npt.NDArray[np.float32] = levels.scales[0].astype(np.float32)
    return scales
