"""Local errors against whole networks that are run with and without one quantized unit."""

from __future__ import annotations

import numpy as np
import pytest

from infoq_onnx.graph.editing import expose
from infoq_onnx.schema import Change, Trial, units_of
from infoq_onnx.sensitivity.local_error import IMAGES, local_errors
from tests.prepared import Ready, small
from tests.sensitivity.by_hand import ByHand, problem_of, run_in_batches
from tests.simulate.rounded import alone


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("name", ["residual", "attention", "mlp"])
def test_local_errors_are_those_of_the_whole_network(name: str, rounding: str) -> None:
    of: Ready = small(name)
    bits = (2, 4)
    rounded = alone(of, (*bits, 8)) if rounding == "gptq" else {}
    problem = problem_of(of, bits=(*bits, 8), rounded=rounded)
    by_hand = ByHand(of, problem)
    found = {(one.unit, one.bits): one.value for one in local_errors(problem, bits)}
    layers = of.network.layers
    by_hand.model = expose(by_hand.model, [layer.output for layer in layers if layer.output != of.graph.output])
    baseline = run_in_batches(by_hand.model, of, {})
    for unit in units_of(of.network):
        weights = unit.kind == "weight"
        readers = [layer for layer in layers if (layer.name == unit.name if weights else unit.name in layer.groups)]
        for b in bits:
            outputs = by_hand.outputs(Trial((Change(unit, b),), 0.0, 0.0, {}))
            expected = 0.0
            for layer in readers:
                one, other = (values[layer.output][:IMAGES].astype(np.float64) for values in (baseline, outputs))
                expected += np.square(one - other).sum() / np.square(one - one.mean()).sum()
            assert found[unit, b] == pytest.approx(expected, rel=2e-3), (unit, b)
    assert len(found) == len(units_of(of.network)) * len(bits)
