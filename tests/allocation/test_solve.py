"""From scores and budgets to bits: least score, exact limits, and what is said when there is no way."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoq_onnx.allocation.bounds import Pins, parse_budget, parse_pins
from infoq_onnx.allocation.costs import Budget, costs, uniform
from infoq_onnx.allocation.metrics import METRICS
from infoq_onnx.allocation.monotone import monotone
from infoq_onnx.allocation.solve import Solution
from infoq_onnx.errors import AnalysisError, InfeasibleBudgetError, SettingsError
from infoq_onnx.schema import Bound, Costs, Network

from .networks import make_layer, make_network, make_resnet18, make_scores
from .solving import solve

FIELDS = {"bitops": "bitops", "size": "weight_bytes", "compression": "compression"} | {
    name: name for name in ("avg_weight_bits", "avg_act_bits")
}


@pytest.fixture(scope="module")
def resnet18() -> Network:
    return make_resnet18()


@pytest.fixture(scope="module")
def scores(resnet18: Network) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]:
    weights = make_scores([layer.name for layer in resnet18.layers], seed=0)
    return monotone(weights), monotone(make_scores([group.name for group in resnet18.groups], seed=1))


def budget_of(metric: str, limit: float) -> Budget:
    return Budget(METRICS[metric], Bound(metric, limit, ""))


def within(budget: Budget, found: Costs) -> bool:
    value, limit = getattr(found, FIELDS[budget.metric.name]), budget.bound.limit
    return bool(value >= limit if budget.metric.name == "compression" else value <= limit)


def counted(network: Network, solution: Solution) -> Costs:
    return costs(network, solution.weight_bits, solution.activation_bits)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Draw 1 to 4 layers, with and without weights, fed by few tensors: groups are often shared."""
    count = draw(st.integers(1, 4))
    feed = st.sampled_from([f"t{i}" for i in range(count)])
    layers = []
    for i in range(count):
        macs = draw(st.integers(1, 10**10))
        if draw(st.integers(0, 3)):
            layers.append(make_layer(f"layer{i}", (draw(feed),), macs=macs, parameters=draw(st.integers(1, 10**7))))
        else:
            layers.append(make_layer(f"layer{i}", (draw(feed), draw(feed)), macs=macs))
    fed = sorted({group for layer in layers for group in layer.groups})
    return make_network(layers, {name: draw(st.integers(1, 10**6)) for name in fed})


@settings(derandomize=True, deadline=None, max_examples=300)
@given(networks(), st.data())
def test_equals_trying_every_allocation(network: Network, data: st.DataObject) -> None:
    """Scores, costs, bounds and pins by hand against the whole stage, limits as tight as they can be."""
    bits = sorted(data.draw(st.sets(st.integers(2, 8), min_size=1, max_size=3)))
    alpha = data.draw(st.sampled_from([0.0, 0.1, 1.0, 2.0]))
    weight_only = data.draw(st.booleans())
    weights = [layer.name for layer in network.layers if layer.weight is not None]
    groups = [group.name for group in network.groups]

    def draw_scores(names: list[str]) -> dict[str, dict[int, float]]:
        score = st.floats(0, 0.1)
        return {
            name: {width: data.draw(score) for width in {*bits} - {8}} | {8: 0.0}
            for name in names
            if data.draw(st.integers(0, 5))
        }

    weight_scores, activation_scores = draw_scores(weights), draw_scores(groups)
    pins = parse_pins(["first=/8"] if data.draw(st.booleans()) else [], network)
    metrics = ["bitops", "avg_act_bits", *(["size", "compression", "avg_weight_bits"] if weights else [])]
    target = costs(
        network,
        {name: data.draw(st.sampled_from(bits)) for name in weights},
        {name: data.draw(st.sampled_from(bits)) for name in groups},
    )
    bounds = [
        budget_of(metric, float(getattr(target, FIELDS[metric])))
        for metric in data.draw(st.sets(st.sampled_from(metrics), min_size=1, max_size=3))
    ]
    if data.draw(st.booleans()):
        bounds.append(budget_of("bitops", float(target.bitops - 1)))

    weight_choices = [bits if name in weight_scores else [8] for name in weights]
    activation_choices = [
        [8]
        if weight_only or name not in activation_scores or (pins.texts and name in network.layers[0].groups)
        else bits
        for name in groups
    ]
    best = None
    for picked in itertools.product(*weight_choices, *activation_choices):
        w = dict(zip(weights, picked[: len(weights)], strict=True))
        a = dict(zip(groups, picked[len(weights) :], strict=True))
        spent = costs(network, w, a)
        if all(within(bound, spent) for bound in bounds):
            score = sum(weight_scores[name][b] for name, b in w.items() if name in weight_scores)
            score += alpha * sum(activation_scores[name][b] for name, b in a.items() if name in activation_scores)
            best = score if best is None else min(best, score)

    arguments = (network, weight_scores, activation_scores, bounds, pins)
    if best is None:
        with pytest.raises(InfeasibleBudgetError):
            solve(*arguments, bits=bits, alpha=alpha, weight_only=weight_only)
        return
    found = solve(*arguments, bits=bits, alpha=alpha, weight_only=weight_only)
    assert found.optimal
    assert found.score == pytest.approx(best, abs=1e-12)
    assert all(within(bound, counted(network, found)) for bound in bounds)
    assert solve(*arguments, bits=bits, alpha=alpha, weight_only=weight_only, solver="brute").score == pytest.approx(
        best, abs=1e-12
    )


def test_budget_of_the_narrowest_is_met_and_one_bitop_less_is_not(resnet18: Network, scores: tuple) -> None:
    least = costs(resnet18, *uniform(resnet18, 2, 2)).bitops
    found = solve(resnet18, *scores, [parse_budget("bitops", str(least), resnet18)], Pins())
    assert (found.weight_bits, found.activation_bits) == uniform(resnet18, 2, 2)
    with pytest.raises(
        InfeasibleBudgetError, match=f"`bitops` {least - 1} cannot be met: the smallest reachable is 7.257G"
    ):
        solve(resnet18, *scores, [parse_budget("bitops", str(least - 1), resnet18)], Pins())


def test_own_cost_as_the_budget_gives_the_same_and_one_bitop_less_something_else(
    resnet18: Network, scores: tuple
) -> None:
    first = solve(resnet18, *scores, [parse_budget("bitops", "uniform:3/3", resnet18)], Pins())
    spent = counted(resnet18, first).bitops
    assert spent <= 9 * 1_814_073_344
    same = solve(resnet18, *scores, [budget_of("bitops", float(spent))], Pins())
    assert same.score == first.score
    less = solve(resnet18, *scores, [budget_of("bitops", float(spent - 1))], Pins())
    assert counted(resnet18, less).bitops < spent
    assert less.score > first.score


def test_several_bounds_with_both_ends_pinned(resnet18: Network, scores: tuple) -> None:
    """The literal 23.04 G of the paper and 10.66× at once."""
    bounds = [parse_budget("bitops", "23.04G", resnet18), parse_budget("compression", "10.66x", resnet18)]
    found = solve(resnet18, *scores, bounds, parse_pins(["first=8/8", "last=8/8"], resnet18), alpha=0.1)
    spent = counted(resnet18, found)
    assert spent.bitops <= 23_040_000_000
    assert spent.compression >= 10.66
    assert (found.weight_bits["conv1"], found.weight_bits["fc"]) == (8, 8)
    assert (found.activation_bits["image"], found.activation_bits["pooled"]) == (8, 8)
    assert found.optimal


def test_never_worse_than_uniform_at_its_own_cost(resnet18: Network, scores: tuple) -> None:
    for width in (3, 4, 6):
        bounds = [parse_budget("bitops", f"uniform:{width}/{width}", resnet18)]
        found = solve(resnet18, *scores, bounds, Pins())
        assert found.score <= sum(s[width] for by_unit in scores for s in by_unit.values())


def test_weight_only_equals_dynamic_programming(resnet18: Network, scores: tuple) -> None:
    """One budget on weights is a multiple-choice knapsack: least score for every size, layer after layer."""
    unit = math.gcd(*(layer.parameters for layer in resnet18.layers))
    capacity = math.floor(32 * 11_678_912 / 10.66) // unit
    best = np.zeros(capacity + 1)
    for layer in resnet18.layers:
        extended = np.full(capacity + 1, np.inf)
        for width, score in scores[0][layer.name].items():
            size = layer.parameters // unit * width
            if size <= capacity:
                np.minimum(extended[size:], best[: capacity + 1 - size] + score, out=extended[size:])
        best = extended
    found = solve(resnet18, *scores, [parse_budget("compression", "10.66", resnet18)], Pins(), weight_only=True)
    assert found.score == pytest.approx(best[capacity], rel=1e-12)


def test_generous_budget_gives_8_bits_to_all(resnet18: Network, scores: tuple) -> None:
    for bound in (parse_budget("bitops", "1T", resnet18), parse_budget("compression", "4", resnet18)):
        found = solve(resnet18, *scores, [bound], Pins())
        assert (found.weight_bits, found.activation_bits) == uniform(resnet18, 8, 8)
        assert found.score == 0.0


def test_bits_that_cost_nothing_are_given_where_scores_tie(resnet18: Network) -> None:
    flat = {layer.name: dict.fromkeys(range(2, 9), 0.0) for layer in resnet18.layers}
    bound = parse_budget("size", "uniform:5", resnet18)
    found = solve(resnet18, flat, {}, [bound], Pins())
    size = counted(resnet18, found).weight_bytes
    parameters = {layer.name: layer.parameters for layer in resnet18.layers}
    narrow = [name for name, width in found.weight_bits.items() if width < 8]
    assert narrow
    assert all(size + parameters[name] / 8 > bound.bound.limit for name in narrow)


def test_weight_only_keeps_activations(resnet18: Network, scores: tuple) -> None:
    bound = parse_budget("compression", "uniform:3", resnet18)
    found = solve(resnet18, *scores, [bound], Pins(), weight_only=True)
    assert set(found.activation_bits.values()) == {8}
    assert counted(resnet18, found).compression >= bound.bound.limit
    with pytest.raises(SettingsError, match="activation image at 4 bits, but `weight_only` keeps it at 8: drop one"):
        solve(resnet18, *scores, [bound], parse_pins(["first=8/4"], resnet18), weight_only=True)


def test_unit_without_scores_stays_at_8_bits(resnet18: Network, scores: tuple) -> None:
    weights, activations = scores
    weights = {name: by_bits for name, by_bits in weights.items() if name != "fc"}
    found = solve(resnet18, weights, activations, [parse_budget("bitops", "uniform:3/3", resnet18)], Pins())
    assert found.weight_bits["fc"] == 8


def test_same_arguments_same_solution(resnet18: Network, scores: tuple) -> None:
    bounds = [parse_budget("bitops", "uniform:4/4", resnet18), parse_budget("avg_act_bits", "4", resnet18)]
    assert solve(resnet18, *scores, bounds, Pins()) == solve(resnet18, *scores, bounds, Pins())


@pytest.mark.parametrize(
    ("bounds", "pins", "weight_only", "message"),
    [
        (
            {"bitops": "0.5G"},
            ["conv1=8/8"],
            False,
            "`bitops` 0.5G cannot be met: the smallest reachable is 14.34G (all layers at 2/2 but for the pins "
            "conv1=8/8); loosen the budget",
        ),
        (
            {"bitops": "10G"},
            ["conv1=8/8"],
            False,
            "`bitops` 10G cannot be met: the smallest reachable is 14.34G (all layers at 2/2 but for the pins "
            "conv1=8/8); loosen the budget or drop the pin",
        ),
        (
            {"bitops": "8G"},
            ["conv1=8/8", "fc=8"],
            False,
            "`bitops` 8G cannot be met: the smallest reachable is 14.35G (all layers at 2/2 but for the pins "
            "conv1=8/8 fc=8); loosen the budget or drop pins",
        ),
        (
            {"bitops": "10G"},
            [],
            True,
            "`bitops` 10G cannot be met: the smallest reachable is 29.03G (all layers at 2/8); loosen the budget or "
            "drop `weight_only`",
        ),
        # dropping either does not help
        (
            {"bitops": "10G"},
            ["conv1=8/8"],
            True,
            "`bitops` 10G cannot be met: the smallest reachable is 34.69G (all layers at 2/8 but for the pins "
            "conv1=8/8); loosen the budget",
        ),
        (
            {"compression": "20x"},
            [],
            True,
            "`compression` 20x cannot be met: the largest reachable is 16x (all layers at 2/8); loosen the budget",
        ),
        (
            {"size": "2MB", "bitops": "8G", "avg_act_bits": "1.5"},
            [],
            False,
            "`size` 2MB cannot be met: the smallest reachable is 2.785MiB; `avg_act_bits` 1.5 cannot be met: the "
            "smallest reachable is 2 (all layers at 2/2); loosen the budget",
        ),
    ],
)
def test_infeasible_budget_says_what_is_reachable(
    resnet18: Network, scores: tuple, bounds: dict[str, str], pins: list[str], weight_only: bool, message: str
) -> None:
    parsed = [parse_budget(metric, text, resnet18) for metric, text in bounds.items()]
    with pytest.raises(InfeasibleBudgetError) as caught:
        solve(resnet18, *scores, parsed, parse_pins(pins, resnet18), weight_only=weight_only)
    assert str(caught.value) == message


def test_reachable_value_in_the_message_can_be_typed_back(resnet18: Network, scores: tuple) -> None:
    pins = parse_pins(["conv1=8/8", "layer1*=7/5"], resnet18)
    for metric, text in {
        "bitops": "1G",
        "size": "1MB",
        "compression": "32",
        "avg_weight_bits": "1",
        "avg_act_bits": "1",
    }.items():
        with pytest.raises(InfeasibleBudgetError) as caught:
            solve(resnet18, *scores, [parse_budget(metric, text, resnet18)], pins)
        hint = str(caught.value).split(" reachable is ")[1].split(" ")[0]
        assert solve(resnet18, *scores, [parse_budget(metric, hint, resnet18)], pins).optimal


def test_units_held_at_8_bits_are_mentioned(resnet18: Network, scores: tuple) -> None:
    told = r"at 2/8 but for 38 units without scores, which keep 7 or 8 bits\); loosen the budget"
    for budget, ways in (("1MB", ""), ("3MB", ", analyze more images or take another `criterion`")):
        with pytest.raises(InfeasibleBudgetError, match=f"{told}{ways}$"):
            solve(resnet18, {"fc": scores[0]["fc"]}, {}, [parse_budget("size", budget, resnet18)], Pins())


@pytest.mark.parametrize(
    ("bounds", "pins", "rules", "ways"),
    [
        # a criterion that scores no activations, whatever the images
        ({"bitops": "10G"}, [], {}, " or take another `criterion`"),
        ({"bitops": "5G"}, [], {}, ""),
        ({"bitops": "10G", "compression": "20"}, [], {}, ""),
        # an analysis that tried no activations
        ({"bitops": "10G"}, [], {"tried_weights_only": True}, " or run analyze without `weight_only`"),
        ({"avg_act_bits": "4"}, [], {"tried_weights_only": True}, " or run analyze without `weight_only`"),
        (
            {"bitops": "10G"},
            [],
            {"tried_weights_only": True, "weight_only": True},
            " or run analyze without `weight_only` and drop it here",
        ),
        ({"bitops": "10G"}, ["conv1=8/8"], {"tried_weights_only": True}, ""),
        ({"bitops": "5G"}, [], {"tried_weights_only": True}, ""),
        ({"compression": "20"}, [], {"tried_weights_only": True}, ""),
        ({"compression": "16"}, ["fc=8"], {"tried_weights_only": True}, " or drop the pin"),
    ],
)
def test_ways_to_meet_a_budget_are_those_that_meet_it(
    resnet18: Network, scores: tuple, bounds: dict[str, str], pins: list[str], rules: dict[str, bool], ways: str
) -> None:
    parsed = [parse_budget(metric, text, resnet18) for metric, text in bounds.items()]
    with pytest.raises(InfeasibleBudgetError) as caught:
        solve(resnet18, scores[0], {}, parsed, parse_pins(pins, resnet18), **rules)
    assert str(caught.value).endswith(f"); loosen the budget{ways}")


def test_settings_that_make_no_sense(resnet18: Network, scores: tuple) -> None:
    bounds = [parse_budget("bitops", "uniform:3/3", resnet18)]
    with pytest.raises(SettingsError, match="no solver 'simplex': choose among highs, brute"):
        solve(resnet18, *scores, bounds, Pins(), solver="simplex")
    for alpha in (-1.0, float("nan"), float("inf")):
        with pytest.raises(SettingsError, match="`alpha`"):
            solve(resnet18, *scores, bounds, Pins(), alpha=alpha)
    with pytest.raises(SettingsError, match="measured at 4, 8 bits"):
        solve(resnet18, {"conv1": {4: 0.1}}, {}, bounds, Pins(), bits=(2, 3))
    with pytest.raises(AnalysisError, match="weight score of conv1 at 4 bits is nan"):
        solve(resnet18, {"conv1": {4: float("nan")}}, {}, bounds, Pins())


def test_7_bits_stand_in_for_8_in_layers_that_would_saturate() -> None:
    layers = [make_layer(name, (f"{name}.in",), macs=10, parameters=10) for name in ("one", "two", "free")]
    network = make_network(layers, {f"{layer.name}.in": 10 for layer in layers})
    weights = {layer.name: {2: 1.0, 6: 0.1, 7: 0.04} for layer in layers}
    activations = {group.name: {2: 2.0, 6: 1.0, 7: 0.5} for group in network.groups}

    def solved(pins: tuple[str, ...] = (), **options: object) -> Solution:
        parsed = parse_pins(pins, network)
        return solve(network, weights, activations, (), parsed, saturating={"one", "two"}, **options)  # type: ignore[arg-type]

    found = solved()
    assert found.weight_bits == {"one": 7, "two": 7, "free": 8}
    assert set(found.activation_bits.values()) == {8}
    assert found.score == pytest.approx(0.08)
    # a pin at 8 bits means the widest there is; beside activations that are pinned below 8 bits it is 8
    assert solved(("one=8", "two=8/6")).weight_bits == {"one": 7, "two": 8, "free": 8}
    assert solved(bits=(2, 8)).weight_bits == {"one": 7, "two": 7, "free": 8}
    assert solved(bits=(2, 6)).weight_bits == {"one": 6, "two": 6, "free": 6}
    assert solved(weight_only=True).weight_bits == {"one": 7, "two": 7, "free": 8}


def test_7_bits_that_were_not_tried_score_a_quarter_a_bit_of_fewer() -> None:
    layers = [make_layer("one", ("in",), macs=10, parameters=10)]
    network = make_network(layers, {"in": 10})
    for scores, expected in (({5: 0.16, 2: 1.0}, 0.01), ({6: 0.16}, 0.04), ({7: 0.3, 6: 0.4}, 0.3), ({}, 0.0)):
        found = solve(network, {"one": scores}, {"in": {4: 1.0}}, (), Pins({}, ()), saturating={"one"})
        assert found.weight_bits == {"one": 7}
        assert found.score == pytest.approx(expected)
