"""Weight scales that minimise squared error, one an output channel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infoq_onnx.quantize.grid import FloatArray
from infoq_onnx.quantize.im2col import to_rows
from infoq_onnx.quantize.levels import search_levels


def weight_scales(weight: FloatArray, bits: int, axis: int) -> npt.NDArray[np.float32]:
    """Per-channel scales with the least squared error at a bit-width, to nearest codes.

    Parameters
    ----------
    weight : float array, any shape
    bits : 2 … 8
    axis : the output-channel axis

    Returns
    -------
    float32 array [C], C = weight.shape[axis]; all positive and finite. A channel of zeros gets the largest scale of
    the others (1 when all are zero): any scale represents it, but the bias behind it is stored in units of this one.
    """
    rows = to_rows(weight, axis, 1)
    levels = search_levels(rows, np.ones((1, rows.shape[2])), bits, shifted=False)
    scales: npt.NDArray[np.float32] = levels.scales[0].astype(np.float32)
    return scales
