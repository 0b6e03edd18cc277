"""What allocate does with the choices that it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infoq_onnx.allocation.costs import Budget
from infoq_onnx.allocation.decide import budget_label
from infoq_onnx.allocation.metrics import METRICS
from infoq_onnx.analyses import read_analyzed
from infoq_onnx.files import sha256_of
from infoq_onnx.pipeline import allocate, evaluate
from infoq_onnx.schema import Bound
from tests.networks import residual_convnet
from tests.pipeline.cases import Case, Listener, data_for, measured, saved


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
    table = read_analyzed(case.analysis).scores["kl"]
    assert done.allocation.scores_sha256 == sha256_of(measured(case.analysis).scores_by("kl"))
    scores = {(score.unit.name, score.bits): score.value for score in table.scores}
    bits = done.allocation
    total = sum(scores.get((unit, width), 0.0) for unit, width in bits.weight_bits.items())
    total += 0.5 * sum(scores.get((unit, width), 0.0) for unit, width in bits.activation_bits.items())
    assert bits.score == pytest.approx(total, rel=0.05)


def budget(metric: str, text: str) -> Budget:
    return Budget(METRICS[metric], Bound(metric, 1.0, text))


@pytest.mark.parametrize(
    ("bounds", "uniform_bits", "weight_only", "label"),
    [
        ((), (4, 3), False, "uniform-4-3"),
        ((), (4, 3), True, "uniform-4-8"),
        ((budget("bitops", "23.04G"),), None, False, "bitops-23.04G"),
        (
            (budget("bitops", "uniform:3/3"),),
            None,
            True,
            "bitops-uniform-3-3-weight_only",
        ),
        (
            (
                budget("size", " 1.5 MiB"),
                budget("compression", "8x"),
            ),
            None,
            False,
            "size-1.5-MiB-compression-8x",
        ),
    ],
)
def test_budgets_as_names(
    bounds: tuple[Bound, ...], uniform_bits: tuple[int, int] | None, weight_only: bool, label: str
) -> None:
    assert budget_label(bounds, uniform_bits, weight_only) == label


def test_a_table_of_costs_beside_another_bound(case: Case, tmp_path: Path) -> None:
    """Latency that only 4/4 and 8/8 kernels differ in, with a bound on the weights: both hold, and both are kept."""
    layers = [layer.name for layer in read_analyzed(case.analysis).analysis.network.layers]
    rows = [f"{name},{b},{b},{cost}" for name in layers for b, cost in ((8, "2us"), (4, "1us"))]
    table = tmp_path / "latency.csv"
    table.write_text("\n".join(["layer,w_bits,a_bits,cost", *rows]))
    listener = Listener()
    done = allocate(
        case.analysis,
        bounds={"compression": "6"},
        tables=[f"{table}:4.5us"],
        target="x86-vnni",
        output=tmp_path / "m.onnx",
        reporter=listener,
    ).allocation
    groups = {layer.name: layer.groups[0] for layer in read_analyzed(case.analysis).analysis.network.layers}
    fast = [name for name in layers if done.weight_bits[name] <= 4 and done.activation_bits[groups[name]] <= 4]
    assert len(fast) >= 2
    assert done.costs.compression >= 6
    assert done.bounds[1] == Bound("budget", 4.5, f"{table}:4.5us", table_sha256=sha256_of(table))
    assert f"latency.csv: {6 - len(fast)} us of 4.5 us" in listener.notes


def test_arrays_are_not_preprocessed_and_who_asks_for_it_is_told(case: Case, tmp_path: Path) -> None:
    plain = evaluate(case.model, case.calib)
    assert evaluate(case.model, case.calib, preprocessing="none").top1 == plain.top1
    model = residual_convnet(size=8, width=4)
    path, data = saved(model, tmp_path / "conv.onnx"), data_for(model, tmp_path / "data.npz", 16)
    for preprocessing, told in ((None, False), ("none", False), ("imagenet", True)):
        listener = Listener()
        evaluate(path, data, preprocessing=preprocessing, reporter=listener)
        assert any("holds the model's input already" in note for note in listener.notes) == told
