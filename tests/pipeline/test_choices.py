"""What allocate does with the choices that it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infoq_onnx.allocation.decide import budget_label
from infoq_onnx.analyses import read_analysis
from infoq_onnx.pipeline import allocate
from infoq_onnx.schema import Bound
from tests.pipeline.cases import Case


def test_uniform(case: Case, tmp_path: Path) -> None:
    done = allocate(case.analysis, uniform_bits=(2, 4), output=tmp_path / "m.onnx")
    assert set(done.allocation.weight_bits.values()) == {2}
    assert set(done.allocation.activation_bits.values()) == {4}
    assert (done.allocation.criterion, done.allocation.optimal) == ("uniform", False)
    weights = allocate(case.analysis, uniform_bits=(2, 4), weight_only=True, output=tmp_path / "w.onnx").allocation
    assert set(weights.weight_bits.values()) == {2}
    assert set(weights.activation_bits.values()) == {8}


def test_weight_only(case: Case, tmp_path: Path) -> None:
    done = allocate(case.analysis, bounds={"compression": "10"}, weight_only=True, output=tmp_path / "m.onnx")
    assert set(done.allocation.activation_bits.values()) == {8}
    assert set(done.allocation.weight_bits.values()) != {8}


def test_pins(case: Case, tmp_path: Path) -> None:
    pins = ("first=8/8", "fc2=2", "last=/4")
    options: dict[str, Any] = {"pins": pins, "target": "x86-vnni"}
    done = allocate(case.analysis, bounds={"avg_weight_bits": "6"}, output=tmp_path / "m.onnx", **options)
    assert done.allocation.pins == pins
    assert done.allocation.weight_bits["fc1"] == 8
    assert done.allocation.activation_bits["x"] == 8
    assert done.allocation.weight_bits["fc2"] == 2
    assert done.allocation.activation_bits["relu2_out"] == 4


def test_bits_to_choose_among(case: Case, tmp_path: Path) -> None:
    for target, stand_in in (("x86-vnni", set[int]()), ("any", {7})):
        options: dict[str, Any] = {"bits": (4, 8), "target": target}
        done = allocate(case.analysis, bounds={"compression": "4"}, output=tmp_path / "m.onnx", **options)
        assert {*done.allocation.weight_bits.values(), *done.allocation.activation_bits.values()} <= {4, 8} | stand_in


def test_criteria_and_alpha_are_recorded(case: Case, tmp_path: Path) -> None:
    done = allocate(
        case.analysis, bounds={"bitops": "uniform:4/4"}, criterion="kl", alpha=0.5, output=tmp_path / "m.onnx"
    )
    assert (done.allocation.criterion, done.allocation.alpha) == ("kl", 0.5)
    scores = {(score.unit, score.bits): score.value for score in read_analysis(case.analysis).scores["kl"]}
    bits = done.allocation
    total = sum(scores.get((unit, width), 0.0) for unit, width in bits.weight_bits.items())
    total += 0.5 * sum(scores.get((unit, width), 0.0) for unit, width in bits.activation_bits.items())
    assert bits.score == pytest.approx(total, rel=0.05)


@pytest.mark.parametrize(
    ("bounds", "uniform_bits", "weight_only", "label"),
    [
        ((), (4, 3), False, "uniform-4-3"),
        ((), (4, 3), True, "uniform-4-8"),
        ((Bound("bitops", 1.0, "23.04G"),), None, False, "bitops-23.04G"),
        ((Bound("bitops", 1.0, "uniform:3/3"),), None, True, "bitops-uniform-3-3-weight_only"),
        ((Bound("size", 1.0, " 1.5 MiB"), Bound("compression", 1.0, "8x")), None, False, "size-1.5-MiB-compression-8x"),
    ],
)
def test_budgets_as_names(
    bounds: tuple[Bound, ...], uniform_bits: tuple[int, int] | None, weight_only: bool, label: str
) -> None:
    assert budget_label(bounds, uniform_bits, weight_only) == label
