"""Scores by hand."""

from __future__ import annotations

import math
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
from scipy import stats

from infoq_onnx.errors import SettingsError
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.quantize.weight_scales import weight_scales
from infoq_onnx.schema import BASELINE_BITS, Candidate, Change, Delta, Observer, Score, Trial, Unit
from infoq_onnx.sensitivity import criteria
from infoq_onnx.sensitivity.criteria import Context, Scored, criterion, get_criteria, get_criterion
from infoq_onnx.sensitivity.criteria.eagl import eagl, entropy_bits
from infoq_onnx.sensitivity.criteria.infoq import equation_4, infoq
from infoq_onnx.sensitivity.criteria.kl import kl
from infoq_onnx.sensitivity.criteria.weight_error import weight_error
from tests.prepared import is_one_line, small


def context_of(asked: criteria.Criterion, **made: Any) -> Context:
    """What a criterion gets of a small network, at 2 and 4 bits."""
    return Context(
        asked, small("mlp").network, (2, 4, 8), {need: lambda value=value: value for need, value in made.items()}
    )


def observer(tensor: str, xl: float, ly: float, *, keeps_xl: bool = False, keeps_ly: bool = False) -> Observer:
    return Observer(tensor, xl, ly, 0.9, 0.9, 20, keeps_xl, keeps_ly, "")


OBSERVERS = (
    observer("early", 2.0, 0.5, keeps_xl=True),
    observer("middle", 1.0, 7.0),
    observer("late", 0.5, 1.5, keeps_xl=True, keeps_ly=True),
)
CONV, FC = Unit("weight", "conv"), Unit("activation", "fc")
TRIALS = (
    Trial(
        (Change(CONV, 4),),
        0.1,
        0.25,
        {
            "early": Delta(-0.4, 0.03, 9.0, 9.0),
            "middle": Delta(9.0, 9.0, 9.0, 9.0),
            "late": Delta(0.1, 0.2, 0.3, 0.04),
        },
    ),
    Trial((Change(FC, 2),), 0.0, 0.5, {"late": Delta(0.2, 0.0, -0.1, 0.0)}),
)


def test_infoq_is_equation_4() -> None:
    conv, fc = equation_4(TRIALS, OBSERVERS)
    assert (conv.unit, conv.bits) == (CONV, 4)
    assert conv.value == pytest.approx((0.4 + 0.1 + 0.3) / (2.0 + 0.5 + 1.5) / 4)
    assert conv.se == pytest.approx(math.sqrt(0.03**2 + 0.2**2 + 0.04**2) / (2.0 + 0.5 + 1.5) / 4)
    assert (fc.unit, fc.bits) == (FC, 2)
    # only observers behind the unit, in the denominator as well
    assert fc.value == pytest.approx((0.2 + 0.1) / (0.5 + 1.5) / 2)
    assert fc.se == 0.0


def test_infoq_without_the_factor() -> None:
    with_factor, without = equation_4(TRIALS, OBSERVERS), equation_4(TRIALS, OBSERVERS, one_over_b=False)
    for one, other, bits in zip(with_factor, without, (4, 2), strict=True):
        assert other.value == pytest.approx(bits * one.value)
        assert other.se == pytest.approx(bits * one.se)


def test_infoq_less_its_noise() -> None:
    conv, fc = equation_4(TRIALS, OBSERVERS, debias=True)
    assert conv.value == pytest.approx((0.37 + 0.0 + 0.26) / 4.0 / 4)
    assert fc.value == pytest.approx(0.3 / 2.0 / 2)


@pytest.mark.parametrize(
    "observers",
    [
        (observer("early", 2.0, 2.0), observer("middle", 1.0, 1.0), observer("late", 1.0, 1.0)),
        (
            observer("early", -2.0, 2.0, keeps_xl=True),
            observer("middle", 1.0, 1.0),
            observer("late", 0.0, 0.0, keeps_ly=True),
        ),
    ],
    ids=["none selected", "no information"],
)
def test_infoq_claims_nothing_without_information(observers: tuple[Observer, ...]) -> None:
    assert equation_4(TRIALS, observers) == ()


def test_kl_is_that_of_the_trials() -> None:
    context = context_of(kl, trials=TRIALS)
    assert list(kl.function(context)) == [Score(CONV, 4, 0.25, 0.0), Score(FC, 2, 0.5, 0.0)]


def test_another_threshold_takes_other_observers() -> None:
    """Ten trials whose accuracy follows one tensor with a correlation between 0.5 and 0.7."""
    random = np.random.default_rng(24)
    drops = random.random(10)
    lost = drops + 0.8 * random.random(10)
    r = stats.pearsonr(lost, drops).statistic
    assert 0.5 < r < 0.7
    trials = [
        Trial(
            (Change(Unit("weight", f"fc{i}"), 2),),
            float(drops[i]),
            0.1,
            {"inner": Delta(float(lost[i]), 0.1, 0.0, 0.1)},
        )
        for i in range(10)
    ]
    observed = (Candidate("inner", 1.0, 1.0), Candidate("logits", 1.0, 1.0))
    context = context_of(infoq, trials=trials, information=observed)
    kept = {
        threshold: [o.tensor for o in infoq.function(context, threshold=threshold).observers if o.selected_xl]
        for threshold in (0.5, 0.7)
    }
    assert kept == {0.5: ["inner"], 0.7: []}
    with pytest.raises(SettingsError, match="from -1 to 1"):
        infoq.score(context, {"threshold": 1.5})


# --------------------------------------------------------------------------------------------------------- weights only


@pytest.mark.parametrize(
    ("codes", "bits"), [([0, 0, 0], 0.0), ([-1, 1], 1.0), ([-2, -1, 0, 1], 2.0), ([0, 0, 0, 1], 0.811278)]
)
def test_entropy_of_known_distributions(codes: list[int], bits: float) -> None:
    assert entropy_bits(np.array(codes)) == pytest.approx(bits, abs=1e-6)


def grids_of(weights: dict[str, Any], axis: int) -> GridTable:
    scales = {name: {b: weight_scales(weight, b, axis) for b in (2, 4, 8)} for name, weight in weights.items()}
    return GridTable({}, scales)


def test_what_the_weights_alone_tell() -> None:
    """Against codes and errors that numpy makes of the scales, and scipy's entropy."""
    of = small("mlp")
    (axis,) = {layer.channel_axis for layer in of.network.layers}
    assert axis is not None
    weights = {layer.name: of.graph.constant(str(layer.weight)) for layer in of.network.layers}
    grids = grids_of(weights, axis)

    def rounded(name: str, bits: int) -> Any:
        shape = [-1 if i == axis else 1 for i in range(weights[name].ndim)]
        scale = grids.weights[name][bits].astype(np.float64).reshape(shape)
        codes = np.clip(np.rint(weights[name] / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return codes, codes * scale

    def entropy(codes: Any) -> float:
        return float(stats.entropy(np.unique(codes, return_counts=True)[1], base=2))

    found = {name: eagl.score(context_of(eagl, weights=weights, grids=grids), {}).scores for name in weights}["fc1"]
    assert {(score.unit.name, score.bits) for score in found} == {(name, b) for name in weights for b in (2, 4)}
    errors = weight_error.score(context_of(weight_error, weights=weights, grids=grids), {"relative": False}).scores
    shares = weight_error.score(context_of(weight_error, weights=weights, grids=grids), {"relative": True}).scores
    for score, error, share in zip(found, errors, shares, strict=True):
        codes, values = rounded(score.unit.name, score.bits)
        whole = entropy(rounded(score.unit.name, BASELINE_BITS)[0])
        assert score.value == pytest.approx(whole - entropy(codes), abs=1e-9)
        weight = weights[score.unit.name].astype(np.float64)
        assert error.value == pytest.approx(np.sum((values - weight) ** 2), rel=1e-5)
        assert share.value == pytest.approx(error.value / np.sum(weight**2))


# ------------------------------------------------------------------------------------------------- what criteria may do


def test_only_what_is_declared_is_offered() -> None:
    @criterion(source="", needs=("weights",))
    def greedy(context: Context) -> list[Score]:
        return [Score(trial.unit, trial.bits, trial.kl, 0.0) for trial in context.trials]

    with pytest.raises(SettingsError) as caught:
        greedy.score(context_of(greedy, weights={}), {})
    assert is_one_line(caught.value, "greedy", "uses trials")


@pytest.mark.parametrize(
    ("returned", "part"),
    [
        ([Score(Unit("weight", "fc9"), 2, 1.0, 0.0)], "not a score of a unit"),
        ([Score(Unit("weight", "fc1"), 3, 1.0, 0.0)], "(2, 4)"),
        ([Score(Unit("weight", "fc1"), 8, 0.0, 0.0)], "(2, 4)"),
        (2 * [Score(Unit("weight", "fc1"), 2, 1.0, 0.0)], "one score a unit"),
        ([Score(Unit("weight", "fc1"), 2, math.nan, 0.0)], "not finite"),
        ([("fc1", 2, 1.0)], "not a score of a unit"),
        (None, "TypeError"),
        (3, "TypeError"),
    ],
)
def test_what_are_no_scores_is_refused(returned: Any, part: str) -> None:
    @criterion(source="", needs=())
    def odd(context: Context) -> Any:  # noqa: ARG001
        return returned

    with pytest.raises(SettingsError) as caught:
        odd.score(context_of(odd), {})
    assert is_one_line(caught.value, "criterion odd", part)


def test_a_criterion_that_fails_is_one_line() -> None:
    @criterion(source="", needs=())
    def broken(context: Context) -> Scored:  # noqa: ARG001
        raise ZeroDivisionError("two\nlines")

    with pytest.raises(SettingsError) as caught:
        broken.score(context_of(broken), {})
    assert is_one_line(caught.value, "broken", "ZeroDivisionError: two lines")


def test_options_come_from_the_signature() -> None:
    @criterion(source="", needs=(), options={"power": "of it"})
    def of_power(context: Context, *, power: float = 2.0, signed: bool = False) -> list[Score]:  # noqa: ARG001
        """First line.

        And more.
        """
        return []

    assert (of_power.name, of_power.summary, of_power.passes) == ("of-power", "First line.", "none")
    assert of_power.settings({}) == {"power": 2.0, "signed": False}
    assert of_power.settings({"power": 3}) == {"power": 3.0, "signed": False}
    for given, part in (
        ({"strength": 1.0}, "`power`, `signed`"),
        ({"power": "much"}, "float"),
        ({"signed": 1}, "bool"),
    ):
        with pytest.raises(SettingsError) as caught:
            of_power.settings(given)
        assert is_one_line(caught.value, "of-power", part)


def test_a_declaration_that_makes_no_sense() -> None:
    with pytest.raises(TypeError, match="money"):
        criterion(source="", needs=("money",))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="default"):

        @criterion(source="", needs=())
        def without(context: Context, *, power: float) -> list[Score]:  # noqa: ARG001
            return []


# ------------------------------------------------------------------------------------------------------------- plug-ins


def test_own_criteria() -> None:
    assert list(get_criteria()) == ["kl", "kl-pooled", "infoq", "infoq-pooled", "eagl", "weight-error"]
    assert get_criterion("eagl").package.startswith("infoq-onnx ")
    assert get_criterion("eagl").is_cheap()
    with pytest.raises(SettingsError) as caught:
        get_criterion("hawq")
    assert is_one_line(caught.value, "hawq", "infoq")


def offer(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    entry = EntryPoint("other", value, criteria.ENTRY_POINT_GROUP)
    monkeypatch.setattr(criteria, "entry_points", lambda group: [entry] if group == entry.group else [])


@criterion(source="", needs=("activations",))
def other(context: Context) -> list[Score]:  # noqa: ARG001
    """What another package may offer."""
    return []


def test_criteria_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, f"{__name__}:other")
    assert get_criterion("other").function is other.function
    assert not get_criterion("other").is_cheap()
    assert "other" not in criteria.CRITERIA


@pytest.mark.parametrize("value", ["infoq_onnx.sensitivity.criteria.kl:kl", "infoq_onnx.schema:Score"])
def test_what_is_no_criterion_of_that_name(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, value)
    with pytest.raises(SettingsError) as caught:
        get_criteria()
    assert is_one_line(caught.value, "other", value)


@pytest.mark.parametrize("value", ["no_such_package:score", "infoq_onnx.errors:score"])
def test_criteria_that_cannot_be_loaded(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, value)
    with pytest.raises(SettingsError) as caught:
        get_criteria()
    assert is_one_line(caught.value, "other", value)


def test_the_order_of_a_trials_observers_does_not_matter_to_the_last_bit() -> None:
    """Those of a trial that comes back from the journal are sorted."""
    tensors = [f"tensor {i}" for i in range(40)]
    observers = tuple(observer(tensor, 0.1 * i + 0.1, 1.0, keeps_xl=True) for i, tensor in enumerate(tensors))
    deltas = {tensor: Delta(0.1 / (i + 1), 0.01, 0.0, 0.0) for i, tensor in enumerate(tensors)}
    orders = [list(deltas), list(reversed(deltas)), sorted(deltas)]
    change = (Change(Unit("weight", "a"), 3),)
    found = {equation_4([Trial(change, 0.1, 0.1, {t: deltas[t] for t in order})], observers) for order in orders}
    assert len(found) == 1
