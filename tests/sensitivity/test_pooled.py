"""Pooled scores against data made from the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infoq_onnx.errors import SettingsError
from infoq_onnx.schema import Candidate, Change, Delta, LocalError, Trial, Unit
from infoq_onnx.sensitivity.criteria import Context, Criterion
from infoq_onnx.sensitivity.criteria.infoq import infoq
from infoq_onnx.sensitivity.criteria.pooled import (
    Harm,
    divergences,
    fit,
    infoq_pooled,
    kl_pooled,
    pool,
    proportional,
)
from tests.prepared import is_one_line, small

BITS = (2, 3, 4, 5, 6, 7)
LOW = (2, 3, 4)


def units(count: int, kind: str = "weight") -> list[Unit]:
    return [Unit(kind, f"{kind} {index}") for index in range(count)]  # type: ignore[arg-type]


def errors_of(scales: Mapping[Unit, float]) -> list[LocalError]:
    """Errors that fall by four with each bit."""
    return [LocalError(unit, b, scale * 4.0**-b) for unit, scale in scales.items() for b in BITS]


@given(
    sensitivities=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6),
    deviations=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    data=st.data(),
)
def test_harm_without_noise_is_found_again(
    sensitivities: list[float], deviations: tuple[float, float], data: st.DataObject
) -> None:
    """Also at widths that were not tried, where the deviation is 0."""
    scales = {unit: data.draw(st.floats(1e-3, 1e3)) for unit in units(len(sensitivities))}
    errors = errors_of(scales)
    by_width = dict(zip(BITS, (*deviations, 0, 0, 0, 0), strict=True))
    true = {
        (error.unit, error.bits): sensitivity * error.value * math.exp(by_width[error.bits])
        for sensitivity, unit in zip(sensitivities, scales, strict=True)
        for error in errors
        if error.unit == unit
    }
    scores = pool({key: Harm(value) for key, value in true.items() if key[1] in LOW}, errors)
    assert [(score.unit, score.bits) for score in scores] == [(error.unit, error.bits) for error in errors]
    for score in scores:
        assert score.value == pytest.approx(true[score.unit, score.bits], rel=1e-9)
        assert score.se == pytest.approx(0, abs=1e-6 * score.value)


def test_kinds_of_units_deviate_on_their_own() -> None:
    weights, activations = units(3), units(3, "activation")
    errors = errors_of(dict.fromkeys([*weights, *activations], 1.0))
    harm = {
        (error.unit, error.bits): Harm(error.value * (5 if error.bits == 2 and error.unit.kind == "weight" else 1))
        for error in errors
        if error.bits in LOW
    }
    found = {(score.unit, score.bits): score.value for score in pool(harm, errors)}
    assert found[weights[0], 2] == pytest.approx(5 / 16)
    assert found[activations[0], 2] == pytest.approx(1 / 16)


@pytest.mark.parametrize(("spread", "noise"), [(0.0, 0.8), (0.8, 0.1), (0.5, 0.3), (0.2, 0.5)])
def test_noise_is_averaged_and_what_is_real_stays(spread: float, noise: float) -> None:
    """Pooled scores are hardly ever further from the truth than trials, nor than the model without own deviations."""
    random = np.random.default_rng(0)
    scales = {unit: float(np.exp(random.normal())) for unit in units(80)}
    errors = errors_of(scales)
    groups = 16
    true, harm = {}, {}
    for unit in scales:
        sensitivity = math.exp(random.normal())
        for error in errors:
            if error.unit == unit and error.bits in LOW:
                key = (unit, error.bits)
                true[key] = sensitivity * error.value * math.exp(spread * random.normal())
                # skewed, as divergences are: a few images carry the mean
                parts = true[key] * random.gamma(1 / (groups * noise**2), groups * noise**2, groups)
                harm[key] = Harm(float(parts.mean()), tuple(parts))
    scores = {(score.unit, score.bits): score for score in pool(harm, errors)}

    def distance(values: Mapping[tuple[Unit, int], float]) -> float:
        return float(np.std([math.log(values[key] / true[key]) for key in true]))

    # without the trials' own values: the mean of a unit over its widths
    means = {unit: np.mean([math.log(harm[unit, b].value / (scales[unit] * 4.0**-b)) for b in LOW]) for unit in scales}
    rigid = {(unit, b): scales[unit] * 4.0**-b * math.exp(means[unit]) for unit, b in true}
    found = distance({key: scores[key].value for key in true})
    assert found <= 1.02 * distance({key: one.value for key, one in harm.items()})
    assert found <= 1.1 * distance(rigid)
    # standard errors are those of the logarithms, on average
    if noise < 0.5:
        told = np.sqrt(np.mean([(scores[key].se / scores[key].value) ** 2 for key in true]))
        assert told == pytest.approx(found, rel=0.25)


def test_additive_noise_is_fitted_by_weighted_least_squares() -> None:
    random = np.random.default_rng(5)
    scales = {unit: float(np.exp(random.normal())) for unit in units(5)}
    errors = errors_of(scales)
    harm = {(unit, b): (float(random.normal(3 * scales[unit] * 4.0**-b, 0.1)), 0.1 * b) for unit in scales for b in LOW}
    for score in proportional(harm, errors):
        design = np.array([scales[score.unit] * 4.0**-b / (0.1 * b) for b in LOW])
        target = np.array([harm[score.unit, b][0] / (0.1 * b) for b in LOW])
        (slope,), *_ = np.linalg.lstsq(design[:, None], target)
        error = scales[score.unit] * 4.0**-score.bits
        assert score.value == pytest.approx(slope * error)
        assert score.se == pytest.approx(error / np.linalg.norm(design))


def test_exact_and_missing_harm_can_be_fitted() -> None:
    exact, constant, untried = units(3)
    errors = errors_of({exact: 1.0, constant: 0.0, untried: 1.0})
    harm = {(exact, 2): (0.5, 0.0), (exact, 3): (9.0, 0.1), (constant, 2): (0.0, 0.1)}
    found = {(score.unit, score.bits): score.value for score in proportional(harm, errors)}
    assert {unit for unit, _ in found} == {exact, constant}
    assert found[exact, 3] == pytest.approx(0.5 / 4)
    assert {found[constant, b] for b in BITS} == {0.0}
    assert proportional({(exact, 2): (0.5, 0.0)}, errors)[0].value == pytest.approx(0.5)


def test_the_fit_is_that_of_least_squares_where_medians_are_means() -> None:
    """With two units, the median of a column is its mean, and so the fit is that of ordinary least squares."""
    table = np.random.default_rng(3).normal(size=(2, 3))
    fitted = fit(table)
    rows, columns = np.indices(table.shape).reshape(2, -1)
    design = np.zeros((6, 4))
    design[np.arange(6), rows] = 1
    for index, column in enumerate(columns):
        if column < 2:
            design[index, 2 + column] = 1
    solution, residual, *_ = np.linalg.lstsq(design, table.reshape(-1))
    np.testing.assert_allclose([*fitted.sensitivity, *fitted.common], [*solution, 0], atol=1e-9)
    assert fitted.spread() == pytest.approx(residual[0] / 2)
    np.testing.assert_allclose(fitted.left, (table.reshape(-1) - design @ solution).reshape(2, 3), atol=1e-9)


def test_what_is_missing_does_not_matter() -> None:
    """A unit with one trial gets all scores, one whose trials show no harm gets zeros, one without trials none."""
    one, harmless, untried = units(3)
    errors = errors_of(dict.fromkeys((one, harmless, untried), 1.0))
    harm = {(one, 3): Harm(2.0 * 4.0**-3), (harmless, 3): Harm(0.0)}
    found = {(score.unit, score.bits): score.value for score in pool(harm, errors)}
    assert {unit for unit, _ in found} == {one, harmless}
    assert found[one, 7] == pytest.approx(2.0 * 4.0**-7)
    assert {value for (unit, _), value in found.items() if unit == harmless} == {0.0}


def test_a_unit_without_local_errors_may_still_harm() -> None:
    """On the few images that local errors are measured on, the unit changes nothing."""
    one, other = units(2)
    errors = errors_of({one: 1.0, other: 0.0})
    harm = {(unit, b): scale * 4.0**-b for unit, scale in ((one, 2.0), (other, 0.5)) for b in LOW}
    pooled = pool({key: Harm(value) for key, value in harm.items()}, errors)
    fitted = proportional({key: (value, 0.1 * value) for key, value in harm.items()}, errors)
    for scores in (pooled, fitted):
        found = {(score.unit, score.bits): score.value for score in scores}
        assert found[one, 7] == pytest.approx(2.0 * 4.0**-7)
        assert [found[other, b] for b in BITS] == [pytest.approx(0.5 * 4.0**-b) for b in BITS]


def test_an_analysis_without_local_errors_is_refused() -> None:
    for fitted in (
        lambda: pool({(Unit("weight", "fc"), 2): Harm(1.0)}, ()),
        lambda: proportional({(Unit("weight", "fc"), 2): (1.0, 0.1)}, ()),
    ):
        with pytest.raises(SettingsError) as caught:
            fitted()
        assert is_one_line(caught.value, "older version", "`criterion` kl", "analyze again")


def all_bits(asked: Criterion, **made: Any) -> Context:
    """What a criterion gets of a small network, at 2 to 8 bits."""
    found: Mapping[Any, Any] = {need: lambda value=value: value for need, value in made.items()}
    return Context(asked, small("mlp").network, (*BITS, 8), found)


def trial(unit: Unit, bits: int, kl: float, lost: float) -> Trial:
    return Trial((Change(unit, bits),), 0.0, kl, {"logits": Delta(None, None, lost, 0.5)}, None, (0.5 * kl, 1.5 * kl))


def test_both_criteria_pool_what_they_are_named_after() -> None:
    """InfoQ's harm has no factor 1/b."""
    network = small("mlp").network
    unit, logits = Unit("weight", network.layers[0].name), network.output
    trials = [trial(unit, b, 3.0 * 4.0**-b, 7.0 * 4.0**-b) for b in LOW]
    errors = errors_of({unit: 1.0})
    made: dict[str, Any] = {"trials": trials, "local_errors": errors}
    assert [score.value for score in kl_pooled.score(all_bits(kl_pooled, **made), {}).scores] == [
        pytest.approx(3.0 * 4.0**-b) for b in BITS
    ]
    assert divergences(trials)[unit, 2] == Harm(3.0 / 16, (1.5 / 16, 4.5 / 16))
    named = [Trial(one.changes, 0.0, one.kl, {logits: one.deltas["logits"]}) for one in trials]
    made = {"trials": named, "information": (Candidate(logits, 1.0, 2.0),), "local_errors": errors}
    scored = infoq_pooled.score(all_bits(infoq_pooled, **made), infoq_pooled.settings({}))
    assert [score.value for score in scored.scores] == [pytest.approx(3.5 * 4.0**-b) for b in BITS]
    assert [one.tensor for one in scored.observers] == [logits]
    with pytest.raises(SettingsError, match="threshold"):
        infoq_pooled.score(all_bits(infoq_pooled, **made), {"threshold": 2.0})
    raw = infoq.score(all_bits(infoq, trials=named, information=made["information"]), infoq.settings({}))
    assert raw.observers == scored.observers
