"""The stop rule: regret of the choice under scores drawn anew."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from infoq_onnx.pipeline.settling import RESAMPLES, SHARES, regret
from infoq_onnx.schema import MeasurementSettings, Network, Score, Unit, units_of
from tests.prepared import small

BITS = (2, 4, 8)


def scores_of(network: Network, spread: float, *, weight_only: bool = False, seed: int = 0) -> list[Score]:
    """Scores that fall with more bits, all with the same relative standard error."""
    random = np.random.default_rng(seed)
    scores = []
    for unit in units_of(network, weight_only=weight_only):
        sensitivity = math.exp(random.normal())
        scores += [Score(unit, b, sensitivity * 4.0**-b, spread * sensitivity * 4.0**-b) for b in BITS[:-1]]
    return scores


@pytest.mark.parametrize("weight_only", [False, True])
def test_scores_without_noise_have_no_regret(weight_only: bool) -> None:
    network = small("residual").network
    settings = MeasurementSettings(bits=BITS, weight_only=weight_only)
    assert regret(network, scores_of(network, 0.0, weight_only=weight_only), settings) == 0


def test_noisier_scores_have_more_regret() -> None:
    network = small("residual").network
    settings = MeasurementSettings(bits=BITS)
    found = [regret(network, scores_of(network, spread), settings) for spread in (0.05, 0.5, 2.0)]
    assert 0 <= found[0] < found[1] < found[2]
    # the same seed draws the same
    assert regret(network, scores_of(network, 0.5), settings) == found[1]


def test_regret_is_that_of_the_steepest_steps() -> None:
    """Weights of a small network: the relaxed program takes the steps of all units that lower the total most a bit."""
    network = small("mlp").network
    settings = MeasurementSettings(bits=BITS, weight_only=True)
    scores = scores_of(network, 0.6, weight_only=True, seed=2)
    units = units_of(network, weight_only=True)
    size = {Unit("weight", layer.name): layer.parameters for layer in network.layers}
    values = {unit: {one.bits: one.value for one in scores if one.unit == unit} | {8: 0.0} for unit in units}
    random = np.random.default_rng(np.random.SeedSequence((settings.seed, 3)))
    sigma = math.sqrt(math.log1p(0.6**2))
    draws = [[math.exp(random.standard_normal() * sigma) for _ in units] for _ in range(RESAMPLES)]
    low, high = (sum(size[unit] * b for unit in units) for b in (2, 8))

    def best(factors: list[float], limit: float) -> dict[Unit, dict[int, float]]:
        """Share of each bit-width. The scores of scores_of are convex, so the steps of a unit come in their order."""
        steps = []
        for factor, unit in zip(factors, units, strict=True):
            for before, after in itertools.pairwise(BITS):
                cost = size[unit] * (after - before)
                steps.append((factor * (values[unit][after] - values[unit][before]) / cost, cost, unit, before, after))
        mixture = {unit: {b: float(b == BITS[0]) for b in BITS} for unit in units}
        left = limit - low
        for _, cost, unit, before, after in sorted(steps, key=lambda step: step[0]):
            share = min(1.0, left / cost)
            mixture[unit][before] -= share
            mixture[unit][after] += share
            left -= share * cost
        return mixture

    def total(factors: list[float], mixture: dict[Unit, dict[int, float]]) -> float:
        parts = zip(factors, units, strict=True)
        return sum(
            factor * sum(share * values[unit][b] for b, share in mixture[unit].items()) for factor, unit in parts
        )

    excesses = []
    for share in SHARES:
        limit = low + math.ceil(share * (high - low))
        chosen = best([1.0] * len(units), limit)
        excesses += [total(factors, chosen) / total(factors, best(factors, limit)) - 1 for factors in draws]
    assert regret(network, scores, settings) == pytest.approx(np.mean(excesses), abs=1e-6)
    assert np.mean(excesses) > 0.01
