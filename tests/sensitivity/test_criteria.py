"""Scores by hand."""

from __future__ import annotations

import math
from importlib.metadata import EntryPoint

import pytest

from infoq_onnx.errors import SettingsError
from infoq_onnx.schema import Delta, Observer, SweepSettings, Trial
from infoq_onnx.sensitivity import criteria
from infoq_onnx.sensitivity.criteria import get_criteria
from infoq_onnx.sensitivity.criteria.infoq import infoq
from infoq_onnx.sensitivity.criteria.kl import kl
from tests.prepared import is_one_line


def settings(*, one_over_b: bool = True, debias: bool = False) -> SweepSettings:
    return SweepSettings(
        samples=100,
        seed=0,
        projections=8,
        neighbours=3,
        bits=(2, 4, 8),
        encoder="pca",
        threshold=0.7,
        one_over_b=one_over_b,
        debias=debias,
        equalize=False,
        trial_rounding="nearest",
    )


def observer(tensor: str, xl: float, ly: float, *, keeps_xl: bool = False, keeps_ly: bool = False) -> Observer:
    return Observer(tensor, xl, ly, 0.9, 0.9, 20, keeps_xl, keeps_ly, "")


OBSERVERS = (
    observer("early", 2.0, 0.5, keeps_xl=True),
    observer("middle", 1.0, 7.0),
    observer("late", 0.5, 1.5, keeps_xl=True, keeps_ly=True),
)
TRIALS = (
    Trial(
        "conv",
        "weight",
        4,
        0.1,
        0.25,
        {
            "early": Delta(-0.4, 0.03, 9.0, 9.0),
            "middle": Delta(9.0, 9.0, 9.0, 9.0),
            "late": Delta(0.1, 0.2, 0.3, 0.04),
        },
    ),
    Trial("fc", "activation", 2, 0.0, 0.5, {"late": Delta(0.2, 0.0, -0.1, 0.0)}),
)


def test_infoq_is_equation_4() -> None:
    conv, fc = infoq(TRIALS, OBSERVERS, settings())
    assert (conv.unit, conv.kind, conv.bits) == ("conv", "weight", 4)
    assert conv.value == pytest.approx((0.4 + 0.1 + 0.3) / (2.0 + 0.5 + 1.5) / 4)
    assert conv.se == pytest.approx(math.sqrt(0.03**2 + 0.2**2 + 0.04**2) / (2.0 + 0.5 + 1.5) / 4)
    assert (fc.unit, fc.kind, fc.bits) == ("fc", "activation", 2)
    # only observers behind the unit, in the denominator as well
    assert fc.value == pytest.approx((0.2 + 0.1) / (0.5 + 1.5) / 2)
    assert fc.se == 0.0


def test_infoq_without_the_factor() -> None:
    with_factor, without = infoq(TRIALS, OBSERVERS, settings()), infoq(TRIALS, OBSERVERS, settings(one_over_b=False))
    for one, other, bits in zip(with_factor, without, (4, 2), strict=True):
        assert other.value == pytest.approx(bits * one.value)
        assert other.se == pytest.approx(bits * one.se)


def test_infoq_less_its_noise() -> None:
    conv, fc = infoq(TRIALS, OBSERVERS, settings(debias=True))
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
    assert infoq(TRIALS, observers, settings()) == ()


def test_kl_is_that_of_the_trials() -> None:
    scores = kl(TRIALS, (), settings())
    assert [(score.unit, score.kind, score.bits, score.value, score.se) for score in scores] == [
        ("conv", "weight", 4, 0.25, 0.0),
        ("fc", "activation", 2, 0.5, 0.0),
    ]


# ------------------------------------------------------------------------------------------------------------- plug-ins


def test_own_criteria() -> None:
    assert get_criteria() == {"infoq": infoq, "kl": kl}


def offer(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    entry = EntryPoint("other", value, criteria.ENTRY_POINT_GROUP)
    monkeypatch.setattr(criteria, "entry_points", lambda group: [entry] if group == entry.group else [])


def test_criteria_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "infoq_onnx.sensitivity.criteria.kl:kl")
    assert get_criteria()["other"] is kl
    assert "other" not in criteria.criteria


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
    found = {
        infoq([Trial("a", "weight", 3, 0.1, 0.1, {t: deltas[t] for t in order})], observers, settings())
        for order in orders
    }
    assert len(found) == 1
