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


def test_regret_is_that_of_trying_every_allocation() -> None:
    """Weights of a small network: the best bits for each draw by brute force."""
    network = small("mlp").network
    settings = MeasurementSettings(bits=BITS, weight_only=True)
    scores = scores_of(network, 0.6, weight_only=True, seed=2)
    units = units_of(network, weight_only=True)
    size = {Unit("weight", layer.name): layer.parameters for layer in network.layers}
    values = {unit: {one.bits: one.value for one in scores if one.unit == unit} | {8: 0.0} for unit in units}
    random = np.random.default_rng(np.random.SeedSequence((settings.seed, 3)))
    sigma = math.sqrt(math.log1p(0.6**2))
    draws = [[math.exp(random.standard_normal() * sigma) for _ in units] for _ in range(RESAMPLES)]
    every = list(itertools.product(BITS, repeat=len(units)))
    low, high = (sum(size[unit] * b for unit in units) for b in (2, 8))

    def best(factors: list[float], limit: float) -> tuple[int, ...]:
        def cost(bits: tuple[int, ...]) -> int:
            return sum(size[unit] * b for unit, b in zip(units, bits, strict=True))

        reachable = [bits for bits in every if cost(bits) <= limit]
        return min(reachable, key=lambda bits: total(factors, bits))

    def total(factors: list[float], bits: tuple[int, ...]) -> float:
        return sum(factor * values[unit][b] for factor, unit, b in zip(factors, units, bits, strict=True))

    excesses = []
    for share in SHARES:
        limit = low + math.ceil(share * (high - low))
        chosen = best([1.0] * len(units), limit)
        for factors in draws:
            least = total(factors, best(factors, limit))
            excesses.append(total(factors, chosen) / least - 1 if least > 0 else 0.0)
    assert regret(network, scores, settings) == pytest.approx(np.mean(excesses), abs=1e-9)
