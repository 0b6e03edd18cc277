"""The solver with its rules as keyword arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infoq_onnx.allocation import solve as module
from infoq_onnx.allocation.bounds import Pins
from infoq_onnx.allocation.costs import Budget
from infoq_onnx.allocation.program import ByBits, Rules, Scores
from infoq_onnx.allocation.solve import Solution
from infoq_onnx.schema import Network


def solve(
    network: Network,
    weights: ByBits,
    activations: ByBits,
    bounds: Sequence[Budget],
    pins: Pins,
    *,
    solver: str = "highs",
    **rules: Any,
) -> Solution:
    return module.solve(network, Scores(weights, activations), bounds, Rules(pins=pins, **rules), solver=solver)
