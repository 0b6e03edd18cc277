"""Which tensors are candidates, and which of them are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy import stats

from infoq_onnx.schema import Candidate, Change, Delta, Observer, Trial, Unit
from infoq_onnx.sensitivity.observers import MIN_TRIALS, candidates, pearson, select
from tests.networks import SMALL, Builder, auxiliary_net
from tests.prepared import searched, small


def test_candidates_are_activations_in_front_of_their_quantizers() -> None:
    of = small("residual")
    assert candidates(of.graph, of.network) == (
        "stem_relu_out",
        "a1_relu_out",
        "a_relu_out",
        "b1_relu_out",
        "b_relu_out",
        "flatten_out",
        "logits",
    )


@pytest.mark.parametrize("name", SMALL)
def test_candidates_are_in_topological_order_and_end_in_the_logits(name: str) -> None:
    of = small(name)
    found = candidates(of.graph, of.network)
    order = [tensor for node in of.graph.nodes for tensor in node.output]
    assert list(found) == sorted(set(found), key=order.index)
    assert found[-1] == of.graph.output
    assert {layer.observed for layer in of.network.layers} <= set(found)


def test_tensors_that_mix_the_images_of_a_batch_are_no_candidates() -> None:
    b = Builder()
    hidden = b.op("Tanh", [b.linear(b.op("Transpose", ["x"], "tokens", perm=[1, 0, 2]), "one", 4, 4)], "act")
    mean = b.op("ReduceMean", [b.linear(hidden, "two", 4, 4)], "mean", axes=[0], keepdims=0)
    graph, network, _ = searched(b.model(b.gemm(mean, "fc", 4, 3), (20, 4), (3,)))
    assert candidates(graph, network) == ("mean_out", "logits")


def test_the_logits_are_a_candidate_beside_another_head() -> None:
    graph, network, _ = searched(auxiliary_net())
    assert candidates(graph, network) == ("stem_relu_out", "last_relu_out", "flatten_out", "logits")


# ---------------------------------------------------------------------------------------------------------- correlation


def test_pearson_is_that_of_scipy() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 40))
    assert pearson(x.tolist(), (x + y).tolist()) == pytest.approx(stats.pearsonr(x, x + y).statistic)
    assert pearson(x.tolist(), (-3 * x + 1).tolist()) == pytest.approx(-1)


def test_pearson_of_too_little() -> None:
    points = list(range(MIN_TRIALS))
    assert pearson(points[1:], points[1:]) is None
    assert pearson(points, points) == pytest.approx(1)
    assert pearson(points, [0.5] * MIN_TRIALS) is None
    assert pearson([0.0] * MIN_TRIALS, points) is None


# ------------------------------------------------------------------------------------------------------------ selection


def trials(drops: Sequence[float], deltas: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> list[Trial]:
    """One trial a drop; by tensor the differences of SMI(X;L) and SMI(L;Y)."""
    return [
        Trial(
            (Change(Unit("weight", f"unit{index}"), 2),),
            drop,
            0.0,
            {tensor: Delta(xl[index], 0.01, ly[index], 0.01) for tensor, (xl, ly) in deltas.items()},
        )
        for index, drop in enumerate(drops)
    ]


def selected(
    drops: Sequence[float], deltas: Mapping[str, tuple[Sequence[float], Sequence[float]]], threshold: float = 0.7
) -> dict[str, Observer]:
    found = select([Candidate(tensor, 1.0, 1.0) for tensor in deltas], trials(drops, deltas), threshold, "logits")
    assert [observer.tensor for observer in found] == list(deltas)
    return {observer.tensor: observer for observer in found}


DROPS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
FOLLOWS = [drop / 3 + 0.01 for drop in DROPS]
OPPOSES = FOLLOWS[::-1]
WANDERS = [0.2, 0.3, 0.1, 0.4, 0.2, 0.1, 0.3, 0.2, 0.4, 0.1]


def test_what_follows_the_drop_of_accuracy_is_kept() -> None:
    found = selected(
        DROPS,
        {"both": (FOLLOWS, FOLLOWS), "x": (FOLLOWS, WANDERS), "y": (OPPOSES, FOLLOWS), "logits": (WANDERS, FOLLOWS)},
    )
    kept = {tensor: (observer.selected_xl, observer.selected_ly) for tensor, observer in found.items()}
    assert kept == {"both": (True, True), "x": (True, False), "y": (False, True), "logits": (False, True)}
    assert found["both"].correlation_xl == pytest.approx(1)
    assert found["y"].correlation_xl == pytest.approx(-1)
    assert found["x"].correlation_ly == pytest.approx(stats.pearsonr(WANDERS, DROPS).statistic)
    assert {observer.trials for observer in found.values()} == {len(DROPS)}
    assert "0.7" in found["x"].reason


def test_the_size_of_a_difference_counts_and_not_its_sign() -> None:
    """Mutual information may grow under quantization."""
    signs = [(-1) ** index for index in range(len(DROPS))]
    alternating = [sign * value for sign, value in zip(signs, FOLLOWS, strict=True)]
    found = selected(DROPS, {"inner": (alternating, WANDERS), "logits": (WANDERS, WANDERS)})
    assert found["inner"].correlation_xl == pytest.approx(1)
    assert found["inner"].selected_xl


def test_the_threshold_is_exclusive() -> None:
    exact = pearson(WANDERS, DROPS)
    assert exact is not None
    for threshold, kept in ((exact, False), (exact - 1e-9, True)):
        found = selected(DROPS, {"inner": (WANDERS, OPPOSES), "logits": (OPPOSES, OPPOSES)}, threshold)
        assert found["inner"].selected_xl is kept


def test_without_any_correlation_the_logits_are_kept() -> None:
    found = selected(DROPS, {"inner": (WANDERS, OPPOSES), "logits": (OPPOSES, WANDERS)})
    assert not found["inner"].selected_xl
    assert not found["inner"].selected_ly
    assert (found["logits"].selected_xl, found["logits"].selected_ly) == (False, True)
    assert "logits" in found["logits"].reason


def test_too_few_trials_select_nothing_but_the_logits() -> None:
    few = MIN_TRIALS - 1
    found = selected(DROPS[:few], {"inner": (FOLLOWS, FOLLOWS), "logits": (FOLLOWS, FOLLOWS)})
    assert (found["inner"].selected_xl, found["inner"].selected_ly) == (False, False)
    assert found["inner"].correlation_xl is None
    assert found["inner"].trials == few
    assert str(MIN_TRIALS) in found["inner"].reason
    assert found["logits"].selected_ly


def test_only_trials_in_front_of_a_tensor_count() -> None:
    behind = trials(DROPS, {"early": (FOLLOWS, FOLLOWS), "logits": (FOLLOWS, FOLLOWS)})
    ahead = trials(DROPS, {"logits": (OPPOSES, OPPOSES)})
    places = [Candidate("early", 2.0, 2.0), Candidate("logits", 3.0, 3.0)]
    early, logits = select(places, [*behind, *ahead], 0.7, "logits")
    assert (early.trials, logits.trials) == (10, 20)
    assert early.correlation_xl == pytest.approx(1)
    assert logits.correlation_xl == pytest.approx(0, abs=1e-9)
    assert (early.baseline_xl, logits.baseline_ly) == (2.0, 3.0)
