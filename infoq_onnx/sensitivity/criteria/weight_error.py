"""Squared error of a layer's weights, rounded to nearest. This is HAWQ-v2 with equal curvature for all layers.

S(u, b) = ‖Q_b(W) − W‖². With `relative`, the score is divided by ‖W‖². Activations get no scores and keep 8 bits.
"""

from __future__ import annotations

import numpy as np

from infoq_onnx.quantize.grid import dequantize_weight, quantize_weight
from infoq_onnx.schema import Score, Unit
from infoq_onnx.sensitivity.criteria.base import Context, criterion


@criterion(
    source="HAWQ-v2 without its trace, arXiv 1911.03852",
    needs=("weights", "grids"),
    options={"relative": "Divide by the squared norm of the layer's weights."},
)
def weight_error(context: Context, *, relative: bool = False) -> list[Score]:
    """Squared error of a layer's weights; needs no images."""
    scores = []
    for layer in context.network.layers:
        if layer.weight is None or layer.channel_axis is None:
            continue
        weight = context.weights[layer.name]
        exact = weight.astype(np.float64)
        norm = float(np.sum(exact**2)) if relative else 1.0
        for bits in context.bits:
            scales = context.grids.weights[layer.name][bits]
            codes = quantize_weight(weight, scales, bits, layer.channel_axis)
            rounded = dequantize_weight(codes, scales, layer.channel_axis)
            error = float(np.sum((rounded.astype(np.float64) - exact) ** 2))
            # a layer of zeros is exact at any bit-width
            scores.append(Score(Unit("weight", layer.name), bits, error / norm if error else 0.0, 0.0))
    return scores
