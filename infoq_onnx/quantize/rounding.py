"""A layer's weights, rounded to compute its target as well as its bits allow.

Where a layer has a bias everything is centred: the bias is set last and absorbs every mean, so means must not steer the
rounding. (Without a bias, means are kept.)

1. fit        what the weights would be if they could be real numbers         `quantize.fit`
2. round      column by column, later columns making up for earlier ones      `quantize.gptq`
3. descend    codes and scales once more, until no single change helps        `quantize.descent`
4. bias       b = t̄ − W_q x̄, or the mean behind a Relu or Clip                `quantize.clipped`
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infoq_onnx.quantize.clipped import Clipped, bias_behind
from infoq_onnx.quantize.descent import descend
from infoq_onnx.quantize.fit import fit
from infoq_onnx.quantize.gptq import gptq, search_scales
from infoq_onnx.quantize.moments import Moments
from infoq_onnx.quantize.weights import usable_scales

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rounded:
    """A rounded layer."""

    codes: npt.NDArray[np.int8]
    """[G, R, d]"""
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
    """Fit and round a layer, and set its bias.

    Parameters
    ----------
    weight : float weights [G, R, d]
    moments : of its quantized input and its target
    bits : 2 … 8
    has_bias : whether there is a bias to be set
    exact_input : see `quantize.fit`
    clipped : some positions, where the output is clipped behind the layer
    """
    fitted = fit(weight, moments, centred=has_bias, exact_input=exact_input)
    scales = search_scales(fitted.weight, np.einsum("gii->gi", fitted.hessian), bits)
    codes = gptq(fitted.weight, fitted.hessian, scales, bits)
    codes, scales = descend(fitted.weight, fitted.hessian, codes, scales, bits)
    scales = usable_scales(scales)
    bias: Array | None = None
    if has_bias:
        means = moments.all(centred=True)
        values = codes * scales[:, :, None]
        bias = means.target_mean - np.einsum("grd,gd->gr", values, means.input_mean)
        if clipped is not None:
            bias = bias_behind(clipped, values, bias)
    return Rounded(codes.astype(np.int8), scales.astype(np.float32), bias)
