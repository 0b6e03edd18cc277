"""The vocabulary survives JSON, and JSON that is not of it is refused with the name of the field."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infoq_onnx.schema import (
    ALLOCATION_VERSION,
    ANALYSIS_VERSION,
    BASELINE_BITS,
    BITS,
    SCORES_VERSION,
    Allocation,
    Analysis,
    Bound,
    Costs,
    Evaluation,
    HeldOut,
    MeasurementSettings,
    Network,
    Observer,
    OtherVersion,
    Preprocessing,
    ScoreTable,
    Training,
    Trial,
    UnknownField,
    from_json,
    read,
    to_json,
)
from tests.networks import SMALL
from tests.prepared import searched

WHOLE = (Network, Analysis, Allocation, Evaluation, Preprocessing, Trial, Observer, ScoreTable)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Draw any value of a type of the schema."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return st.builds(kind, **{name: values(hint) for name, hint in typing.get_type_hints(kind).items()})
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(st.none() if arg is type(None) else values(arg) for arg in args))
    if origin is tuple:
        if args[-1] is Ellipsis:
            return st.lists(values(args[0]), max_size=2).map(tuple)
        return st.tuples(*map(values, args))
    if origin is dict:
        return st.dictionaries(st.text(max_size=5), values(args[1]), max_size=2)
    if origin is typing.Literal:
        return st.sampled_from(args)
    if kind is Any:
        return st.one_of(st.booleans(), st.integers(-9, 9), st.text(max_size=5))
    return {
        str: st.text(max_size=5),
        int: st.integers(-(2**63), 2**63),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
    }[kind]


@settings(derandomize=True, deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(WHOLE).flatmap(values))
def test_round_trip(value: Any) -> None:
    text = to_json(value)
    again = from_json(type(value), text)
    assert again == value
    assert to_json(again) == text


@pytest.mark.parametrize("name", ["residual", "attention", "fixed batch"])
def test_round_trip_of_real_networks(name: str) -> None:
    network = searched(SMALL[name]())[1]
    assert from_json(Network, to_json(network)) == network


BOUND = {"limit": 1.0, "text": "1", "overhead": 0.0}


def allocation() -> Allocation:
    return Allocation(
        schema=1,
        model_sha256="a",
        analysis_sha256="b",
        scores_sha256="c",
        criterion="infoq",
        alpha=1.0,
        bounds=(Bound("bitops", 10.0, "10"),),
        pins=("first=8/8",),
        weight_bits={"conv": 4},
        activation_bits={"x": 8},
        rounding="nearest",
        repair=False,
        costs=Costs(100, 12.5, 8.0, 4.0, 8.0),
        score=0.5,
        optimal=True,
    )


def test_an_allocation_without_training_does_not_speak_of_it() -> None:
    """It takes space in small files, and older versions would not read it."""
    assert "training" not in to_json(allocation())
    assert "training" not in to_json(allocation(), compact=True)
    held = HeldOut(10, 0.5, 0.5, 0.9, None)
    trained = dataclasses.replace(allocation(), training=Training("lsq", "a", 0, 90, "b", 12, 4, held, held))
    assert from_json(Allocation, to_json(trained)) == trained


def test_text_is_sorted_and_ends_in_a_newline() -> None:
    text = to_json(allocation())
    assert text.endswith("}\n")
    keys = list(json.loads(text))
    assert keys == sorted(keys)
    expected = {name: value for name, value in dataclasses.asdict(allocation()).items() if name != "training"}
    assert json.loads(text) == json.loads(json.dumps(expected))


def test_whole_numbers_may_stand_for_floats_and_not_the_other_way_round() -> None:
    text = to_json(allocation()).replace('"score": 0.5', '"score": 2')
    found = from_json(Allocation, text)
    assert found.score == 2.0
    assert isinstance(found.score, float)
    with pytest.raises(ValueError, match=r"bitops"):
        from_json(Allocation, to_json(allocation()).replace('"bitops": 100', '"bitops": 100.0'))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": "high"}, r"Allocation\.score.*float.*str"),
        ({"score": None}, r"Allocation\.score"),
        ({"score": True}, r"Allocation\.score"),
        ({"score": 10**400}, r"Allocation\.score"),
        ({"schema": True}, r"Allocation\.schema.*int.*bool"),
        ({"optimal": 1}, r"Allocation\.optimal"),
        ({"pins": "first=8"}, r"Allocation\.pins.*list"),
        ({"pins": ["a", 3]}, r"Allocation\.pins\[1\]"),
        ({"weight_bits": []}, r"Allocation\.weight_bits.*object"),
        ({"weight_bits": {"conv": "4"}}, r"Allocation\.weight_bits\['conv'\]"),
        ({"costs": 3}, r"Allocation\.costs.*object"),
        ({"costs": {"bitops": 1}}, r"Allocation\.costs.*avg_act_bits"),
        ({"bounds": [{**BOUND, "metric": []}]}, r"Allocation\.bounds\[0\]\.metric"),
        ({"colour": "red"}, r"Allocation.*colour"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    content = {**json.loads(to_json(allocation())), **change}
    with pytest.raises(ValueError, match=message):
        from_json(Allocation, json.dumps(content))


NEEDED = [field.name for field in dataclasses.fields(Allocation) if field.default is dataclasses.MISSING]


@pytest.mark.parametrize("field", NEEDED)
def test_what_is_missing_is_named(field: str) -> None:
    content = json.loads(to_json(allocation()))
    del content[field]
    with pytest.raises(ValueError, match=rf"{field}"):
        from_json(Allocation, json.dumps(content))


def test_fields_with_a_default_may_be_missing() -> None:
    """Analyses from before a setting existed had its default."""
    chosen = MeasurementSettings(9, projections=8, bits=(2, 8))
    older = {name: value for name, value in json.loads(to_json(chosen)).items() if name != "weight_only"}
    assert from_json(MeasurementSettings, json.dumps(older)) == chosen


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"Allocation"'])
def test_what_is_no_object(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(Allocation, text)


def test_numbers_that_json_lacks_are_not_written() -> None:
    with pytest.raises(ValueError, match=r"."):
        to_json(dataclasses.replace(allocation(), score=float("nan")))


def test_bits() -> None:
    assert BITS == (2, 3, 4, 5, 6, 7, 8)
    assert BASELINE_BITS in BITS


# -------------------------------------------------------------------------------------------- versions of the files

FILES = Path(__file__).parent / "files"
"""One file of every version that was, by kind and version, as that version wrote it."""


def test_there_is_a_file_of_every_older_version() -> None:
    names = {path.name for path in FILES.iterdir()}
    expected = {f"analysis-{version}.json" for version in range(2, ANALYSIS_VERSION)}
    expected |= {f"allocation-{version}.json" for version in range(2, ALLOCATION_VERSION)}
    expected |= {f"scores-{version}.json" for version in range(1, SCORES_VERSION)}
    assert names == expected


@pytest.mark.parametrize("path", sorted(FILES.glob("analysis-*.json")), ids=lambda path: path.stem)
def test_an_older_analysis_is_upgraded(path: Path) -> None:
    old = json.loads(path.read_text(encoding="utf-8"))
    found = read(Analysis, path.read_text(encoding="utf-8"))
    assert found.schema == ANALYSIS_VERSION
    assert found.network == from_json(Network, json.dumps(old["network"]))
    assert found.settings.bits == (2, 4, 8)
    assert len(found.trials) == 12
    assert found.settings.effort == "full"
    for trial, before in zip(found.trials, old["trials"], strict=True):
        if "changes" in before:
            (change,) = before["changes"]
        else:
            change = {"unit": {"kind": before["kind"], "name": before["unit"]}, "bits": before["bits"]}
        assert (trial.unit.name, trial.unit.kind) == (change["unit"]["name"], change["unit"]["kind"])
        assert (trial.bits, trial.kl) == (change["bits"], before["kl"])
    assert [one.tensor for one in found.candidates] == [
        one["tensor"] for one in old.get("observers", old.get("candidates"))
    ]
    assert read(Analysis, to_json(found)) == found


@pytest.mark.parametrize("path", sorted(FILES.glob("allocation-*.json")), ids=lambda path: path.stem)
def test_an_older_allocation_is_upgraded(path: Path) -> None:
    found = read(Allocation, path.read_text(encoding="utf-8"))
    assert found.schema == ALLOCATION_VERSION
    assert set(found.weight_bits) == {"fc1", "fc2", "fc3"}
    assert read(Allocation, to_json(found)) == found


@pytest.mark.parametrize("path", sorted(FILES.glob("scores-*.json")), ids=lambda path: path.stem)
def test_older_scores_are_upgraded(path: Path) -> None:
    found = read(ScoreTable, path.read_text(encoding="utf-8"))
    assert found.schema == SCORES_VERSION
    assert {score.bits for score in found.scores} == {2, 4}
    assert any(observer.selected_xl for observer in found.observers)
    assert read(ScoreTable, to_json(found)) == found


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1e999"])
def test_numbers_that_are_not_finite(number: str) -> None:
    text = (FILES / "scores-1.json").read_text(encoding="utf-8")
    value = json.loads(text)["scores"][0]["value"]
    with pytest.raises(ValueError, match=r"scores\[0\].value: .* not a finite number"):
        read(ScoreTable, text.replace(repr(value), number, 1))


def test_a_newer_version_is_told_as_what_it_is() -> None:
    content = {**json.loads((FILES / "analysis-2.json").read_text(encoding="utf-8")), "schema": 99, "colour": "red"}
    with pytest.raises(OtherVersion, match=r"schema 99.*up to 4.*update"):
        read(Analysis, json.dumps(content))
    with pytest.raises(OtherVersion, match="schema 1, which is too old"):
        read(Analysis, json.dumps({**content, "schema": 1}))


def test_an_unknown_field_is_told_as_what_it_is() -> None:
    content = json.loads((FILES / "allocation-2.json").read_text(encoding="utf-8"))
    with pytest.raises(UnknownField, match="colour"):
        read(Allocation, json.dumps({**content, "colour": "red"}))


@pytest.mark.parametrize("lacking", ["trials", "settings", "observers"])
def test_an_older_file_that_is_damaged_is_no_other_version(lacking: str) -> None:
    content = json.loads((FILES / "analysis-2.json").read_text(encoding="utf-8"))
    for damaged in ({**content, lacking: 3}, {k: v for k, v in content.items() if k != lacking}):
        with pytest.raises(ValueError, match=r"."):
            read(Analysis, json.dumps(damaged))
