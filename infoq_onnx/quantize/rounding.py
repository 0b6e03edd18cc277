"""Round a layer's weights so that the layer reproduces its target as closely as its bit-width allows.

If the layer has a bias, all moments are centred: the bias is set last and absorbs every mean, so means must not
influence the rounding. Without a bias, means are kept.

1. fit        find the best real-valued weights                               `quantize.least_squares`
2. place      choose the levels of each row                                   `quantize.levels`
3. round      column by column; later columns compensate for earlier ones     `quantize.gptq`
4. descend    improve codes and scales until no single change helps           `quantize.coordinate_descent`
5. bias       b = t̄ − W_q x̄, or match the mean after a Relu or Clip           `quantize.bias_correction`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infoq_onnx.quantize.bias_correction import Clipped, bias_behind
from infoq_onnx.quantize.coordinate_descent import descend
from infoq_onnx.quantize.gptq import factorize, gptq
from infoq_onnx.quantize.least_squares import fit
from infoq_onnx.quantize.levels import SHIFTED_BITS, Levels, search_levels, usable_scales
from infoq_onnx.quantize.moments import Moments
from infoq_onnx.quantize.wide import CHUNK_BYTES, Columns, WideLayer, is_wide, most_positions

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rounded:
    """A rounded layer."""

    codes: npt.NDArray[np.int8]
    """[G, R, d]; value = code · scale."""
    scales: npt.NDArray[np.float32]
    """[G, R]"""
    bits: int
    origins: npt.NDArray[np.int8] | None
    """[G, R], the lowest level in use of each row, where levels are 2 codes apart (`quantize.levels`)."""
    bias: Array | None
    """[G, R], real-valued; None for a layer without a bias."""


def round_layer(
    weight: npt.NDArray[np.floating],
    moments: Moments | Columns,
    bits: int,
    *,
    has_bias: bool,
    exact_input: bool = False,
    clipped: Clipped | None = None,
) -> Rounded:
    """Fit and round a layer at one bit-width, and set its bias.

    Parameters
    ----------
    bits : bit-width, 2 … 8
    weight, moments, has_bias, exact_input, clipped : see `round_widths`

    Returns
    -------
    Rounded
    """
    widths = round_widths(weight, moments, (bits,), has_bias=has_bias, exact_input=exact_input, clipped=clipped)
    return widths[bits]


def round_widths(
    weight: npt.NDArray[np.floating],
    moments: Moments | Columns,
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
    moments : moments of the layer's quantized input and its target; for a wide layer the inputs and targets themselves
        (see `quantize.wide`)
    widths : bit-widths, each 2 … 8
    has_bias : whether the layer has a bias
    exact_input : see `quantize.least_squares`
    clipped : sampled positions, where a Relu or Clip follows the layer; else None

    Returns
    -------
    dict of int to Rounded
        By bit-width.

    Raises
    ------
    ModelError
        The moments exceed float32.
    """
    layer = LayerToRound(weight, moments, has_bias=has_bias, exact_input=exact_input, clipped=clipped)
    return {bits: layer.round(bits) for bits in widths}


def bytes_to_round(groups: int, rows: int, width: int, positions: int) -> int:
    """Estimate the memory that gathering and rounding a layer takes.

    A layer with full moments holds about eight float64 arrays [G, d, d + R]: the sums of both halves, the moments of
    all images and of each half for cross-validation, the factors and the solution. A wide layer holds about four
    float32 copies of its inputs (original, centred and weighted) and a handful of chunks of rows.

    Parameters
    ----------
    groups, rows, width : G, R and d of `quantize.im2col`
    positions : number of positions gathered

    Returns
    -------
    int
        Bytes.
    """
    if is_wide(groups, width):
        kept = min(positions, most_positions(width))
        return 4 * 4 * kept * (width + rows) + 4 * 8 * kept**2 + 6 * min(CHUNK_BYTES, 8 * rows * width)
    return 8 * 8 * groups * width * (width + rows)


class _Layer:
    """A layer whose moments fit memory; all rows are rounded at once. Same interface as `WideLayer`."""

    def __init__(self, weight: Array, moments: Moments, *, centred: bool, exact_input: bool) -> None:
        self._fit = fit(weight, moments, centred=centred, exact_input=exact_input)
        self._factor = factorize(self._fit.hessian)
        self.diagonal: Array = np.einsum("gii->gi", self._fit.hessian)

    def chunks(self) -> list[slice]:
        return [slice(None)]

    def fitted(self, rows: slice) -> Array:
        return self._fit.weight[:, rows]

    def round(self, fitted: Array, levels: Levels) -> Array:
        return gptq(fitted, self._factor, levels)

    def descend(self, fitted: Array, codes: Array, levels: Levels) -> tuple[Array, Levels]:
        return descend(fitted, self._fit.hessian, codes, levels)


class LayerToRound:
    """A layer whose best real-valued weights are found, and which can be rounded at any bit-width.

    Parameters
    ----------
    weight, moments, has_bias, exact_input, clipped : see `round_widths`
    """

    def __init__(
        self,
        weight: npt.NDArray[np.floating],
        moments: Moments | Columns,
        *,
        has_bias: bool,
        exact_input: bool = False,
        clipped: Clipped | None = None,
    ) -> None:
        self._shape, self._moments, self._has_bias, self._clipped = weight.shape, moments, has_bias, clipped
        self._layer: _Layer | WideLayer
        if isinstance(moments, Columns):
            self._layer = WideLayer(weight, moments, centred=has_bias, exact_input=exact_input)
        else:
            self._layer = _Layer(weight.astype(np.float64), moments, centred=has_bias, exact_input=exact_input)

    def chunks(self) -> list[slice]:
        """List the slices of rows R that are rounded at a time."""
        return list(self._layer.chunks())

    def round(self, bits: int, chunks: Sequence[slice] | None = None) -> Rounded:
        """Round the layer at one bit-width.

        Parameters
        ----------
        bits : bit-width, 2 … 8
        chunks : slices of rows to round; the others are left undefined. None rounds all rows

        Returns
        -------
        Rounded
        """
        shifted = bits <= SHIFTED_BITS
        # codes count half steps where the levels may be shifted by half a step
        share = 2 if shifted else 1
        found = np.empty(self._shape, dtype=np.int8)
        all_scales = np.empty(self._shape[:2], dtype=np.float32)
        origins = np.empty(self._shape[:2], dtype=np.int8) if shifted else None
        all_biases = np.empty(self._shape[:2]) if self._has_bias else None
        for rows in self.chunks() if chunks is None else chunks:
            fitted = self._layer.fitted(rows)
            levels = search_levels(fitted, self._layer.diagonal, bits, shifted=shifted)
            steps = self._layer.round(fitted, levels)
            steps, levels = self._layer.descend(fitted, steps, levels)
            scales = usable_scales(levels.scales)
            codes, scales = steps * share, scales / share
            found[:, rows], all_scales[:, rows] = codes, scales
            if origins is not None:
                # from the lowest level in use on: the same codes are stored the same way wherever their grid begins
                origins[:, rows] = codes.min(axis=2)
            if all_biases is not None:
                input_mean, target_mean = self._moments.means()
                values = codes * scales[:, :, None]
                bias = target_mean[:, rows] - np.einsum("grd,gd->gr", values, input_mean)
                clipped = self._clipped
                all_biases[:, rows] = bias if clipped is None else bias_behind(clipped.of(rows), values, bias)
        return Rounded(found, all_scales, bits, origins, all_biases)
