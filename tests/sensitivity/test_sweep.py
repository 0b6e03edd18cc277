"""The sweep against trials made by hand, and its order, its observers and its resumption."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from scipy.special import log_softmax

from infoq_onnx import jit
from infoq_onnx.errors import ModelError
from infoq_onnx.execute.processes import Processes
from infoq_onnx.execute.resources import Resources
from infoq_onnx.quantize.codes import RoundedWeight
from infoq_onnx.schema import Candidate, Observer, Trial, units_of
from infoq_onnx.sensitivity.criteria import Context, Criterion
from infoq_onnx.sensitivity.criteria.infoq import infoq
from infoq_onnx.sensitivity.criteria.kl import kl
from infoq_onnx.sensitivity.journal import open_journal
from infoq_onnx.sensitivity.observers import candidates
from infoq_onnx.sensitivity.sweep import SweepResult, sweep, trial_count
from infoq_onnx.sensitivity.trials import Bench, Problem, Task, runner
from infoq_onnx.simulate.running.batching import run_batches
from tests.networks import Builder, mlp, residual_convnet
from tests.prepared import images, ready, small
from tests.sensitivity.by_hand import ByHand, problem_of, swept
from tests.simulate.rounded import alone


def by_unit(trials: Sequence[Trial]) -> dict[tuple[str, str, int], Trial]:
    return {(trial.unit.name, trial.unit.kind, trial.bits): trial for trial in trials}


def trials_of(problem: Problem, result: SweepResult, criterion: Criterion) -> Context:
    """What a criterion that looks at trials gets."""
    made = {"trials": lambda: result.trials, "information": lambda: result.candidates}
    return Context(criterion, problem.network, problem.settings.bits, made)


def observers_of(problem: Problem, result: SweepResult) -> Sequence[Observer]:
    return infoq.score(trials_of(problem, result, infoq), infoq.settings({})).observers


# ------------------------------------------------------------------------------------------------------- trials by hand


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("name", ["residual", "attention"])
def test_trials_are_those_made_by_hand(name: str, rounding: str, tmp_path: Path) -> None:
    of = small(name)
    rounded = alone(of, (2, 8)) if rounding == "gptq" else {}
    rounded.pop("fc", None)  # what is not in the table is rounded to nearest
    problem = problem_of(of, bits=(2, 8), rounded=rounded)
    by_hand = ByHand(of, problem)
    before = by_hand.baseline[of.graph.output].astype(np.float64)
    result = swept(problem, tmp_path)
    assert result.baseline_top1 == np.mean(before.argmax(axis=1) == problem.labels)
    for trial in result.trials:
        found = by_hand.outputs(trial)
        after = found[of.graph.output].astype(np.float64)
        log_p, log_q = log_softmax(before, axis=1), log_softmax(after, axis=1)
        assert trial.kl == pytest.approx(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1)), rel=1e-3, abs=1e-6)
        drop = np.mean(before.argmax(1) == problem.labels) - np.mean(after.argmax(1) == problem.labels)
        # one image of 48 may lie between two classes
        assert trial.top1_drop == pytest.approx(drop, abs=1 / 47)
        for tensor, delta in trial.deltas.items():
            expected = by_hand.differences(found, tensor)
            assert dataclasses.astuple(delta) == pytest.approx(expected, abs=2e-3)


# -------------------------------------------------------------------------------------------------- order and observers


def test_every_unit_at_every_width_in_order(tmp_path: Path) -> None:
    of = small("residual")
    result = swept(problem_of(of, bits=(2, 6, 8)), tmp_path)
    layers = ["stem", "a1", "a2", "b1", "b2", "b_short", "fc"]
    assert [layer.name for layer in of.network.layers] == layers
    groups = [group.name for group in of.network.groups]
    expected = [(name, "weight", bits) for name in layers for bits in (2, 6)]
    expected += [(name, "activation", bits) for name in groups for bits in (2, 6)]
    assert [(trial.unit.name, trial.unit.kind, trial.bits) for trial in result.trials] == expected
    assert len(expected) == trial_count(of.network, problem_of(of, bits=(2, 6, 8)).settings)
    assert [(unit.name, unit.kind) for unit in units_of(of.network)] == list(
        dict.fromkeys((name, kind) for name, kind, _ in expected)
    )


def test_weights_only(tmp_path: Path) -> None:
    """The same trials of weights, but for the observers: those of a whole sweep see activations, too."""
    of = small("residual")
    folders = [tmp_path / "whole", tmp_path / "weights"]
    for folder in folders:
        folder.mkdir()
    whole = by_unit(swept(problem_of(of, bits=(2, 6, 8)), folders[0]).trials)
    problem = problem_of(of, bits=(2, 6, 8))
    problem = dataclasses.replace(problem, settings=dataclasses.replace(problem.settings, weight_only=True))
    result = swept(problem, folders[1])
    assert len(result.trials) == trial_count(of.network, problem.settings) == 2 * 7
    assert {trial.unit.kind for trial in result.trials} == {"weight"}
    for trial in result.trials:
        assert trial.kl == whole[trial.unit.name, "weight", trial.bits].kl
        if trial.bits == 2:
            assert trial == whole[trial.unit.name, "weight", 2]


def test_a_product_of_activations_has_no_weight_to_try() -> None:
    network = small("attention").network
    weights = {unit.name for unit in units_of(network) if unit.kind == "weight"}
    assert {"scores", "mix"}.isdisjoint(weights)
    assert {"q_order_out", "k_order_out"} <= {unit.name for unit in units_of(network) if unit.kind == "activation"}


def test_only_observers_behind_a_unit_are_looked_at(tmp_path: Path) -> None:
    of = small("residual")
    low = {key: set(trial.deltas) for key, trial in by_unit(swept(problem_of(of), tmp_path).trials).items()}
    tail = {"b1_relu_out", "b_relu_out", "flatten_out", "logits"}
    assert low["stem", "weight", 2] == set(candidates(of.graph, of.network))
    assert low["a2", "weight", 2] == {"a_relu_out", *tail}
    assert low["b_short", "weight", 2] == {"b_relu_out", "flatten_out", "logits"}
    assert low["fc", "weight", 2] == {"logits"}
    # a group's tensor lies in front of its quantizer
    assert low["a_relu_out", "activation", 2] == tail
    assert low["flatten_out", "activation", 2] == {"logits"}
    assert low["x", "activation", 2] == low["stem", "weight", 2]


def test_low_bits_are_seen_by_all_candidates_and_the_rest_by_the_observers(tmp_path: Path) -> None:
    of = small("residual")
    result = swept(problem_of(of, bits=(2, 3, 6, 8)), tmp_path)
    observers = observers_of(problem_of(of, bits=(2, 3, 6, 8)), result)
    kept = {observer.tensor for observer in observers if observer.selected_xl or observer.selected_ly}
    assert kept
    kinds = {observer.tensor: (observer.selected_xl, observer.selected_ly) for observer in observers}
    trials = by_unit(result.trials)
    for trial in result.trials:
        for tensor, delta in trial.deltas.items():
            told = (delta.xl is not None, delta.ly is not None)
            assert told == (delta.xl_se is not None, delta.ly_se is not None)
            assert told == ((True, True) if trial.bits < 5 else kinds[tensor])
    assert any(delta.xl is None for trial in result.trials for delta in trial.deltas.values())
    for unit in units_of(of.network):
        low = trials[unit.name, unit.kind, 3].deltas
        assert set(trials[unit.name, unit.kind, 6].deltas) == kept & set(low)
    assert [observer.tensor for observer in observers] == list(candidates(of.graph, of.network))
    counts = {observer.tensor: observer.trials for observer in observers}
    assert counts["logits"] == 2 * len(units_of(of.network))


def test_without_low_widths_what_there_is_decides(tmp_path: Path) -> None:
    problem = problem_of(small("mlp"), bits=(6, 8))
    result = swept(problem, tmp_path)
    assert {trial.bits for trial in result.trials} == {6}
    assert next(observer for observer in observers_of(problem, result) if observer.tensor == "logits").trials == 6


# ----------------------------------------------------------------------------------------------------- rounded weights


def test_rounded_weights_diverge_less(tmp_path: Path) -> None:
    """In sum: what is fitted are outputs of layers, not the logits."""
    of = small("residual")
    harm = {}
    for rounding, rounded in (("nearest", None), ("gptq", alone(of, (2, 3, 8)))):
        (tmp_path / rounding).mkdir()
        result = swept(problem_of(of, bits=(2, 3, 8), rounded=rounded), tmp_path / rounding)
        harm[rounding] = {
            (trial.unit.name, trial.bits): trial.kl for trial in result.trials if trial.unit.kind == "weight"
        }
    assert sum(harm["gptq"].values()) < 0.5 * sum(harm["nearest"].values())


def test_the_baseline_has_the_rounded_weights_and_biases_of_8_bits(tmp_path: Path) -> None:
    """With 8-bit codes of 0 and biases that name a class it predicts that class."""
    of = small("mlp")
    rounded = alone(of, (2, 8))
    last = rounded["fc3"][8]
    rounded["fc3"][8] = RoundedWeight(np.zeros_like(last.codes), last.scales, 8, bias=np.array([0.0, 0.0, 1.0, 0.0]))
    problem = problem_of(of, bits=(2, 8), rounded=rounded)
    result = swept(problem, tmp_path)
    assert result.baseline_top1 == np.mean(problem.labels == 2)
    for (unit, kind, _), trial in by_unit(result.trials).items():
        # nothing in front of the last layer reaches the logits any more
        assert (trial.kl > 0) == ((unit, kind) == ("fc3", "weight"))


# --------------------------------------------------------------------------------------------------------------- scores


def one_sensitive_layer() -> onnx.ModelProto:
    """fc1 and fc3 lie on a 2-bit grid, so that 2 bits change nothing; fc2 has a few large weights among small ones."""
    model = mlp(features=12, hidden=24)
    random = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.name in ("fc1_w", "fc3_w"):
            codes = random.integers(-2, 2, values.shape)
            codes[:, :2] = [-2, 1]
            values = (codes * 0.25).astype(np.float32)
        elif tensor.name == "fc2_w":
            values = values.copy()
            values[:, ::4] *= 6
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


def test_the_sensitive_layer_scores_highest(tmp_path: Path) -> None:
    of = ready(one_sensitive_layer(), images((12,), 96), bits=(2, 3))
    problem = problem_of(of, bits=(2, 3, 8))
    result = swept(problem, tmp_path)
    for criterion in (infoq, kl):
        scores = criterion.score(trials_of(problem, result, criterion), criterion.settings({})).scores
        value = {(score.unit.name, score.bits): score.value for score in scores if score.unit.kind == "weight"}
        assert value["fc2", 2] > 0.01
        assert value["fc2", 2] > value["fc2", 3]
        for harmless in ("fc1", "fc3"):
            assert value[harmless, 2] < 0.15 * value["fc2", 2]
    trials = by_unit(result.trials)
    assert trials["fc2", "weight", 2].top1_drop > 0.05 > abs(trials["fc1", "weight", 2].top1_drop)


def test_fewer_bits_diverge_more(tmp_path: Path) -> None:
    result = swept(problem_of(small("residual"), bits=(2, 4, 7, 8)), tmp_path)
    harm = {width: sum(trial.kl for trial in result.trials if trial.bits == width) for width in (2, 4, 7)}
    assert math.inf > harm[2] > harm[4] > harm[7] > 0


def test_labels_decide_the_drop_of_accuracy(tmp_path: Path) -> None:
    """Where no prediction of the baseline is right, none can be lost; those that move onto the labels are gained."""
    right = problem_of(small("mlp"), bits=(2, 8))
    wrong = dataclasses.replace(right, labels=(right.labels + 1) % 4)
    for name in ("right", "wrong"):
        (tmp_path / name).mkdir()
    kept, lost = swept(right, tmp_path / "right"), swept(wrong, tmp_path / "wrong")
    assert kept.baseline_top1 > 0.9
    assert lost.baseline_top1 == 0.0
    assert min(trial.top1_drop for trial in kept.trials) > 0
    assert min(trial.top1_drop for trial in lost.trials) < 0
    assert [trial.kl for trial in kept.trials] == [trial.kl for trial in lost.trials]


# --------------------------------------------------------------------------------------------------------------- resume


def test_a_finished_journal_is_all_that_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(small("mlp"))
    first = swept(problem, tmp_path)
    monkeypatch.setattr(Bench, "trials", lambda *_: pytest.fail("a finished trial was run again"))
    assert swept(problem, tmp_path) == first


@pytest.mark.parametrize("stop", [0, 1, 4, 7, 10])
def test_a_sweep_that_was_stopped_goes_on(stop: int, tmp_path: Path) -> None:
    problem = problem_of(small("mlp"))
    (tmp_path / "whole").mkdir()
    whole = swept(problem, tmp_path / "whole")

    class StopError(Exception):
        pass

    calls = 0

    def progress(unit: str, done: int, total: int, share: float) -> None:  # noqa: ARG001
        nonlocal calls
        calls += 1
        if calls > stop:
            raise StopError

    with pytest.raises(StopError):
        sweep(problem, open_journal(tmp_path / "journal.jsonl", "f"), progress)
    assert swept(problem, tmp_path) == whole
    assert (tmp_path / "journal.jsonl").read_bytes() == (tmp_path / "whole" / "journal.jsonl").read_bytes()


def test_projections_beyond_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(small("mlp"))

    def overflowing(*arguments: Any) -> Any:
        for batch, (logits, first, *others) in run_batches(*arguments):
            yield batch, [logits, first + np.float32(np.inf), *others]

    monkeypatch.setattr("infoq_onnx.sensitivity.trials.run_batches", overflowing)
    bench = Bench(problem)
    with pytest.raises(ModelError, match=f"{bench.candidates[0]} holds values so large"):
        bench.baseline()


def test_progress_counts_trials(tmp_path: Path) -> None:
    problem = problem_of(small("mlp"), bits=(2, 3, 6, 8))
    seen: list[tuple[str, int, int, float]] = []
    sweep(problem, open_journal(tmp_path / "journal.jsonl", "f"), lambda *call: seen.append(call))
    done = [count for _, count, _, _ in seen]
    shares = [share for *_, share in seen]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == pytest.approx((0, 1))
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 18)
    assert {total for _, _, total, _ in seen} == {18}
    assert seen[-1][0] == "relu2_out"


def test_the_same_sweep_gives_the_same_numbers(tmp_path: Path) -> None:
    problem = problem_of(small("residual"), bits=(3, 8))
    results = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        results.append(swept(problem, tmp_path / name))
    assert results[0] == results[1]
    assert isinstance(results[0].candidates[0], Candidate)


def test_batches_do_not_decide_anything(tmp_path: Path) -> None:
    """A network fixed to one image at a time has the trials of the same network with a free batch."""
    values = images((3, 16, 16), 24)
    results = []
    for batch in (None, 1):
        folder = tmp_path / str(batch)
        folder.mkdir()
        of = ready(residual_convnet(width=4, batch=batch), values, bits=(2,))
        results.append(swept(problem_of(of, bits=(2, 8)), folder))
    for one, other in zip(results[0].trials, results[1].trials, strict=True):
        assert one.changes == other.changes
        assert one.kl == pytest.approx(other.kl, rel=0.02, abs=1e-5)


def test_tensors_that_mix_the_images_of_a_batch(tmp_path: Path) -> None:
    b = Builder()
    hidden = b.op("Tanh", [b.linear(b.op("Transpose", ["x"], "tokens", perm=[1, 0, 2]), "one", 4, 4)], "act")
    mean = b.op("ReduceMean", [b.linear(hidden, "two", 4, 4)], "mean", axes=[0], keepdims=0)
    model = b.model(b.gemm(mean, "fc", 4, 3), (20, 4), (3,))
    random = np.random.default_rng(0)
    of = ready(model, random.standard_normal((32, 20, 4), dtype=np.float32), bits=(2,))
    result = swept(problem_of(of, bits=(2, 8)), tmp_path)
    assert {tensor for trial in result.trials for tensor in trial.deltas} == {"mean_out", "logits"}
    assert all(trial.kl > 0 for trial in result.trials if trial.unit.name != "fc")


# ------------------------------------------------------------------------------------------------------- many processes


@pytest.mark.parametrize("name", ["residual", "attention", "fixed batch"])
def test_any_number_of_workers_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    of = small(name)
    problem = problem_of(of, bits=(2, 6, 8), rounded=alone(of, (2, 6, 8)))
    results = []
    for workers in (1, 2, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        journal = open_journal(folder / "journal.jsonl", "f")
        results.append(
            (sweep(problem, journal, lambda *_: None, Resources(workers)), (folder / "journal.jsonl").read_bytes())
        )
    assert results[0] == results[1] == results[2]


def test_workers_take_no_products_of_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their last bits depend on the threads that a machine, or Ray, lets the library for linear algebra have."""
    # what a worker sets for good is this process's here
    monkeypatch.setattr(jit, "limit_threads", lambda count: None)  # noqa: ARG005
    problem = problem_of(small("mlp"))
    bench = Bench(problem)
    baseline = bench.baseline()
    task = Task(units_of(problem.network)[0], (2, 6), bench.candidates, bench.candidates)
    blank = dataclasses.replace(problem, encoded=np.full_like(problem.encoded, np.nan))
    assert runner((blank, baseline, 1, None))(task) == bench.trials(task, baseline)


def test_processes_are_started_where_there_is_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def counted(*arguments: Any) -> Processes[Any, Any]:
        started.append(arguments[2])
        return Processes(*arguments)

    monkeypatch.setattr("infoq_onnx.sensitivity.sweep.Processes", counted)
    monkeypatch.setattr("infoq_onnx.sensitivity.work.processors", lambda: 2)
    problem = problem_of(small("mlp"))
    journal = open_journal(tmp_path / "one.jsonl", "f")
    alone = sweep(problem, journal, lambda *_: None, Resources(None))
    assert started == []
    monkeypatch.setattr("infoq_onnx.sensitivity.work.WORTH_PROCESSES", 0)
    assert sweep(problem, open_journal(tmp_path / "two.jsonl", "f"), lambda *_: None, Resources(None)) == alone
    assert started == [2]
    # nothing is left to do
    assert sweep(problem, open_journal(tmp_path / "two.jsonl", "f"), lambda *_: None, Resources(None)) == alone
    assert started == [2]


def test_no_process_is_started_that_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infoq_onnx.sensitivity.sweep.Processes", pytest.fail)
    monkeypatch.setattr("infoq_onnx.sensitivity.sweep.resident", lambda: 2**30)
    monkeypatch.setattr("infoq_onnx.sensitivity.sweep.peak", lambda: 2 * 2**30)
    problem = problem_of(small("mlp"))
    journal = open_journal(tmp_path / "journal.jsonl", "f")
    assert sweep(problem, journal, lambda *_: None, Resources(2, 3 * 2**30 - 1)).trials
