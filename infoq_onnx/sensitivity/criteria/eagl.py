"""EAGL (arXiv 2301.13330): the entropy of a layer's quantized weights.

Let p_q be the share of the layer's weights that have code q at b bits. The entropy is H(b) = −Σ_q p_q log₂ p_q, in bits
per weight. The paper computes H of a trained 4-bit checkpoint to decide between 4 and 2 bits. Here, weights are rounded
to nearest at every bit-width, and the score is the entropy that the layer loses: S(u, b) = H(8) − H(b). Since 8 bits
score 0, minimising Σ S maximises Σ H. Activations get no scores and keep 8 bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infoq_onnx.quantize.grid import quantize_weight
from infoq_onnx.schema import BASELINE_BITS, Score, Unit
from infoq_onnx.sensitivity.criteria.base import Context, criterion


@criterion(source="EAGL, arXiv 2301.13330", needs=("weights", "grids"))
def eagl(context: Context) -> list[Score]:
    """Entropy that a layer's quantized weights lose, in bits per weight; needs no images."""
    scores = []
    for layer in context.network.layers:
        if layer.weight is None or layer.channel_axis is None:
            continue
        weight, scales = context.weights[layer.name], context.grids.weights[layer.name]

        def entropy(
            bits: int,
            weight: npt.NDArray[np.float32] = weight,
            scales: dict[int, npt.NDArray[np.float32]] = scales,
            axis: int = layer.channel_axis,
        ) -> float:
            return entropy_bits(quantize_weight(weight, scales[bits], bits, axis))

        whole = entropy(BASELINE_BITS)
        scores += [Score(Unit("weight", layer.name), b, whole - entropy(b), 0.0) for b in context.bits]
    return scores


def entropy_bits(codes: npt.NDArray[np.integer]) -> float:
    """Return the entropy of the distribution of the codes, in bits."""
    _, counts = np.unique(codes, return_counts=True)
    shares = counts / codes.size
    return float(-np.sum(shares * np.log2(shares)))
