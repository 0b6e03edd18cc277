"""How long does rounding take? Estimated from short probes of its steps on small random layers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infoq_onnx.graph.graph import Graph
from infoq_onnx.quantize.coordinate_descent import descend
from infoq_onnx.quantize.gptq import factorize, gptq
from infoq_onnx.quantize.levels import SHIFTED_BITS, search_levels
from infoq_onnx.quantize.moments import Moments
from infoq_onnx.quantize.wide import is_wide
from infoq_onnx.schema import Network
from infoq_onnx.simulate.rounding.as_matmul import form_of
from infoq_onnx.simulate.rounding.gather import positions_of
from infoq_onnx.simulate.rounding.layerwise import EVERY

_ROWS, _WIDTH, _POSITIONS = 64, 384, 2048
"""R, d and the number of positions of the layer that is probed."""


@dataclass(frozen=True)
class _Rates:
    """Seconds of each step of rounding, per unit of its work."""

    moments: float
    """Per position, input and (input or output)."""
    factor: float
    """Per cubed number of inputs."""
    levels: dict[int, float]
    """Per weight, by bit-width."""
    rounding: float
    """Per weight and input, for each bit-width."""


def rounding_seconds(graph: Graph, network: Network, images: int, bits: Sequence[int]) -> float:
    """Estimate how long it takes to round every layer independently of the others, without running the network.

    Parameters
    ----------
    graph, network : the float network
    images : number of images
    bits : bit-widths to round at

    Returns
    -------
    float
        Seconds.
    """
    rates = _probed(bits)
    seconds = 0.0
    for layer in network.layers:
        form = form_of(graph, layer)
        if form is None:
            continue
        groups, rows, width = form.shape
        positions = positions_of(layer, form.shape, images, EVERY)
        # a wide layer is factorized in the space of its positions
        order = positions if is_wide(groups, width) else width
        seconds += rates.moments * groups * positions * order * (width + rows)
        seconds += rates.factor * groups * order**3
        seconds += groups * rows * width * sum(rates.levels[b] + rates.rounding * order for b in bits)
    return seconds


def _probed(bits: Sequence[int]) -> _Rates:
    random = np.random.default_rng(0)
    weight = random.standard_normal((1, _ROWS, _WIDTH))
    columns = random.standard_normal((1, _POSITIONS, _WIDTH), dtype=np.float32)
    targets = random.standard_normal((1, _POSITIONS, _ROWS), dtype=np.float32)
    moments = Moments(1, _WIDTH, _ROWS)
    adding = _took(lambda: moments.add(columns, targets))
    hessian = moments.all(centred=True).second
    factor, diagonal = factorize(hessian), np.ascontiguousarray(np.einsum("gii->gi", hessian))
    factoring = _took(lambda: factorize(hessian))
    levels = {b: search_levels(weight, diagonal, b, shifted=b <= SHIFTED_BITS) for b in bits}
    searching = {b: _took(lambda: search_levels(weight, diagonal, b, shifted=b <= SHIFTED_BITS)) for b in bits}  # noqa: B023
    some = levels[min(bits)]
    rounding = _took(lambda: descend(weight, hessian, gptq(weight, factor, some), some))
    return _Rates(
        moments=adding / (_POSITIONS * _WIDTH * (_WIDTH + _ROWS)),
        factor=factoring / _WIDTH**3,
        levels={b: seconds / weight.size for b, seconds in searching.items()},
        rounding=rounding / (weight.size * _WIDTH),
    )


def _took(work: Callable[[], Any]) -> float:
    """Return the seconds of the fastest of three runs; the first one may compile."""
    fastest = math.inf
    for _ in range(3):
        begun = time.monotonic()
        work()
        fastest = min(fastest, time.monotonic() - begun)
    return fastest
