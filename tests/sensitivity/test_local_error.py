"""Local errors against whole networks that are run with and without one quantized unit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from infoq_onnx.graph.editing import expose
from infoq_onnx.schema import Change, LocalError, Trial, Unit, units_of
from infoq_onnx.sensitivity.local_error import IMAGES, interpolated, local_errors
from tests.networks import Builder
from tests.prepared import Ready, ready, small
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


def test_a_layer_with_constant_outputs_has_errors() -> None:
    """There is no variance to compare them with."""
    b = Builder()
    first = b.gemm("x", "fc1", 12, 16)
    b.weights["fc1_b"] -= np.float32(100)
    second = b.gemm(b.relu(first, "relu"), "fc2", 16, 4)
    b.weights["fc2_b"] *= 0
    of = ready(b.model(second, (12,), (4,)))
    bits = (2, 4)
    found = {(one.unit, one.bits): one.value for one in local_errors(problem_of(of, bits=(*bits, 8)), bits)}
    assert {unit for unit, _ in found} == set(units_of(of.network))
    assert {found[Unit("weight", "fc2"), b] for b in bits} == {0.0}
    assert found[Unit("weight", "fc1"), 2] > 0


def test_errors_between_measured_widths_are_interpolated() -> None:
    one, other = (Unit("weight", name) for name in ("one", "other"))
    measured = [LocalError(one, 2, 0.5), LocalError(one, 4, 0.02), LocalError(one, 6, 0.001), LocalError(other, 4, 0.0)]
    found = {(error.unit, error.bits): error.value for error in interpolated(measured, (2, 3, 4, 5, 6, 7))}
    assert (found[one, 2], found[one, 4]) == (0.5, 0.02)
    assert found[one, 3] == pytest.approx(math.sqrt(0.5 * 0.02))
    assert found[one, 5] == pytest.approx(math.sqrt(0.02 * 0.001))
    assert found[one, 7] == pytest.approx(0.001 / 4)
    assert [found[other, b] for b in (2, 4, 7)] == [0.0, 0.0, 0.0]
    assert len(found) == 12
