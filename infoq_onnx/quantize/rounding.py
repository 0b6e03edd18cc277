"""A layer's weights, rounded to compute its target as well as its bits allow.

Where a layer has a bias everything is centred: the bias is set last and absorbs every mean, so means must not steer the
rounding. (Without a bias, means are kept.)

1. fit        what the weights would be if they could be real numbers         `quantize.fit`
2. place      the levels of each row's grid                                   `quantize.levels`
3. round      column by column, later columns making up for earlier ones      `quantize.gptq`
4. descend    codes and scales once more, until no single change helps        `quantize.descent`
5. bias       b = t̄ − W_q x̄, or the mean behind a Relu or Clip                `quantize.clipped`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infoq_onnx.quantize.clipped import Clipped, bias_behind
from infoq_onnx.quantize.descent import descend
from infoq_onnx.quantize.fit import fit
from infoq_onnx.quantize.gptq import factorize, gptq
from infoq_onnx.quantize.levels import SHIFTED_BITS, search_levels, usable_scales
from infoq_onnx.quantize.moments import Moments

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rounded:
    """A rounded layer."""

    codes: npt.NDArray[np.int8]
    """[G, R, d]; at most 2^bits different ones in a row, and 2 apart at few bits (see `quantize.levels`)."""
    scales: npt.NDArray[np.float32]
    """[G, R]"""
    bias: Array | None
    """[G, R], real-valued; None for a layer without."""


def round_layer(
    weight: Array,
    moments: Moments,
    bits: int,
    *,
    has_bias: bool,
    exact_input: bool = False,
    clipped: Clipped | None = None,
) -> Rounded:
    """Fit and round a layer, and set its bias: `round_widths` for one width."""
    widths = round_widths(weight, moments, (bits,), has_bias=has_bias, exact_input=exact_input, clipped=clipped)
    return widths[bits]


def round_widths(
    weight: Array,
    moments: Moments,
    widths: Sequence[int],
    *,
    has_bias: bool,
    exact_input: bool = False,
    clipped: Clipped | None = None,
) -> dict[int, Rounded]:
    """Fit a layer, round it at several bit-widths, and set its bias at each.

    Parameters
    ----------
    weight : float weights [G, R, d]
    moments : of its quantized input and its target
    widths : each 2 … 8
    has_bias : whether there is a bias to be set
    exact_input : see `quantize.fit`
    clipped : some positions, where the output is clipped behind the layer

    Returns
    -------
    dict
        By bit-width.
    """
    fitted = fit(weight, moments, centred=has_bias, exact_input=exact_input)
    factor = factorize(fitted.hessian)
    diagonal = np.einsum("gii->gi", fitted.hessian)
    found = {}
    for bits in widths:
        shifted = bits <= SHIFTED_BITS
        levels = search_levels(fitted.weight, diagonal, bits, shifted=shifted)
        steps = gptq(fitted.weight, factor, levels)
        steps, levels = descend(fitted.weight, fitted.hessian, steps, levels)
        scales = usable_scales(levels.scales)
        # half steps, where a row's levels may lie between whole ones
        share = 2 if shifted else 1
        codes, scales = steps * share, scales / share
        bias: Array | None = None
        if has_bias:
            input_mean, target_mean = moments.means()
            values = codes * scales[:, :, None]
            bias = target_mean - np.einsum("grd,gd->gr", values, input_mean)
            if clipped is not None:
                bias = bias_behind(clipped, values, bias)
        found[bits] = Rounded(codes.astype(np.int8), scales.astype(np.float32), bias)
    return found
