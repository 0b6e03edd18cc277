"""Budgets on costs that a file lists."""

from __future__ import annotations

import itertools
import tempfile
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoq_onnx.allocation.bounds import Pins, parse_budget, parse_table
from infoq_onnx.allocation.costs import by_unit
from infoq_onnx.allocation.metrics.table import MOST_STEPS
from infoq_onnx.errors import InfeasibleBudgetError, SettingsError
from infoq_onnx.schema import Network

from .networks import make_layer, make_network
from .solving import solve

HEAD = "layer,w_bits,a_bits,cost"


@pytest.fixture(scope="module")
def network() -> Network:
    """A tensor that two layers read, a product of two activations, and one of a tensor with itself."""
    layers = [
        make_layer("one", ("x",), macs=10, parameters=10),
        make_layer("two", ("x",), macs=20, parameters=20),
        make_layer("attend", ("q", "k"), macs=30),
        make_layer("gram", ("q", "q"), macs=40),
    ]
    return make_network(layers, {"x": 5, "q": 6, "k": 7})


def written(path: Path, rows: list[str], head: str = HEAD) -> Path:
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return path


def all_at_8(network: Network, cost: str = "1") -> list[str]:
    return [f"{layer.name},8,8,{cost}" for layer in network.layers]


def cost_of(path: Path, network: Network, limit: str, weights: int, activations: int) -> float:
    budget = parse_table(f"{path}:{limit}", network)
    bits = by_unit(
        dict.fromkeys(("one", "two"), weights), dict.fromkeys([group.name for group in network.groups], activations)
    )
    return budget.value(network, bits)


# ------------------------------------------------------------------------------------------------------------- reading


def test_units_are_converted_exactly(network: Network, tmp_path: Path) -> None:
    rows = ["one,8,8,0.3ms", "two,8,8,200us", "attend,8,8,0.0001s", "gram,8,8,4"]
    path = written(tmp_path / "latency.csv", rows)
    # what has no unit has the limit's
    assert cost_of(path, network, "5ms", 8, 8) == 0.3 + 0.2 + 0.1 + 4
    assert cost_of(path, network, "5us", 8, 8) == 300 + 200 + 100 + 4
    budget = parse_table(f"{path}:0.6ms", network)
    assert budget.bound.limit == 0.6
    # in steps of 0.001 ms, as the digits of the costs are
    assert budget.metric.total(network, Fraction(6, 10)) == 600


def test_energy_and_plain_numbers(network: Network, tmp_path: Path) -> None:
    assert cost_of(written(tmp_path / "a.csv", all_at_8(network, "2uJ")), network, "1mJ", 8, 8) == 0.008
    assert cost_of(written(tmp_path / "b.csv", all_at_8(network, "2.5")), network, "100", 8, 8) == 10
    spaced = written(tmp_path / "c.csv", [f" {row.replace(',', ' , ')} " for row in all_at_8(network)], "cost_is, x")
    spaced.write_text(spaced.read_text().replace("cost_is, x", "Layer, W_bits, A_bits, Cost"), encoding="utf-8-sig")
    assert cost_of(spaced, network, "100", 8, 8) == 4


def test_a_pair_costs_what_the_cheapest_at_least_as_wide_does(network: Network, tmp_path: Path) -> None:
    rows = [*all_at_8(network, "8"), "one,4,8,5", "one,8,4,6", "one,4,4,9", "one,16,16,1"]
    path = written(tmp_path / "t.csv", rows)
    others = 3 * 8
    # even 16 bits are cheaper here, and a layer may always run so
    for pair in itertools.product((2, 4, 5, 8), repeat=2):
        assert cost_of(path, network, "100", *pair) == others + 1
    path = written(tmp_path / "u.csv", rows[:-1])
    for (weights, activations), cost in {(8, 8): 8, (4, 8): 5, (3, 8): 5, (8, 3): 6, (5, 4): 6, (4, 4): 5}.items():
        assert cost_of(path, network, "100", weights, activations) == others + cost


# ------------------------------------------------------------------------------------------------------------- solving


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.data())
def test_equals_trying_every_allocation(data: st.DataObject) -> None:
    """Beside a bound on BitOps, with costs in any order of size."""
    layers = [
        make_layer("one", ("x",), macs=10, parameters=10),
        make_layer("two", ("x",), macs=20, parameters=20),
        make_layer("gram", ("x", "x"), macs=40),
    ]
    network = make_network(layers, {"x": 5})
    bits = (2, 4, 8)
    listed = {
        (name, w, a): data.draw(st.integers(0, 20))
        for name in ("one", "two", "gram")
        for w in bits
        for a in bits
        if (w, a) == (8, 8) or data.draw(st.booleans())
    }
    limit = data.draw(st.integers(0, 60))
    with tempfile.TemporaryDirectory() as folder:
        rows = [f"{name},{w},{a},0.0{cost:02d}" for (name, w, a), cost in listed.items()]
        path = written(Path(folder) / "t.csv", rows)
        bounds = [parse_table(f"{path}:0.{limit:03d}", network), parse_budget("bitops", "uniform:4/8", network)]
    score = st.floats(0, 1)
    weights = {name: {b: data.draw(score) for b in (2, 4)} | {8: 0.0} for name in ("one", "two")}
    activations = {"x": {b: data.draw(score) for b in (2, 4)} | {8: 0.0}}

    def cost(name: str, w: int, a: int) -> int:
        return min(c for (n, v, b), c in listed.items() if n == name and v >= w and b >= a)

    best = None
    for w1, w2, a in itertools.product(bits, repeat=3):
        bitops = 10 * w1 * a + 20 * w2 * a + 40 * a * a
        spent = cost("one", w1, a) + cost("two", w2, a) + cost("gram", a, a)
        if spent <= limit and bitops <= 10 * 32 + 20 * 32 + 40 * 64:
            total = weights["one"][w1] + weights["two"][w2] + activations["x"][a]
            best = total if best is None else min(best, total)
    for solver in ("highs", "brute"):
        if best is None:
            with pytest.raises(InfeasibleBudgetError):
                solve(network, weights, activations, bounds, Pins(), bits=bits, solver=solver)
        else:
            found = solve(network, weights, activations, bounds, Pins(), bits=bits, solver=solver)
            assert found.score == pytest.approx(best, abs=1e-12)


def test_what_is_out_of_reach_is_told_in_the_limits_unit(network: Network, tmp_path: Path) -> None:
    path = written(tmp_path / "latency.csv", [*all_at_8(network, "1ms"), "one,2,2,0.25ms"])
    scores = {layer: {2: 1.0} for layer in ("one", "two")}
    with pytest.raises(InfeasibleBudgetError) as caught:
        solve(network, scores, {"x": {2: 1.0}}, [parse_table(f"{path}:3ms", network)], Pins())
    assert f"`budget` {path}:3ms cannot be met: the smallest reachable is 3.25ms" in str(caught.value)
    found = solve(network, scores, {"x": {2: 1.0}}, [parse_table(f"{path}:3.25ms", network)], Pins())
    assert (found.weight_bits["one"], found.activation_bits["x"]) == (2, 2)
    # what is not needed stays wide
    assert found.weight_bits["two"] == 8


# ------------------------------------------------------------------------------------------------------------ refusing


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        (["one,8,8,x"], "line 2: 'x' is not a quantity"),
        (["one,8,8,-1"], "'-1' is not a quantity"),
        (["one,8,8,nan"], "'nan' is not a quantity"),
        (["one,8,8,1e400"], "'1e400' is not a quantity"),
        (["one,8,8,1kg"], "'1kg' is not a quantity"),
        (["one,8,8,1J"], "the cost is in J and the limit in ms"),
        (["one,8,8"], "line 2: expected 4 values"),
        (["one,8,8,1,1"], "line 2: expected 4 values"),
        (["one,eight,8,1"], "'eight' is not a bit-width"),
        (["one,8,0,1"], "'0' is not a bit-width"),
        (["one,8,99,1"], "'99' is not a bit-width"),
        (["three,8,8,1"], "no layer is called 'three'"),
        (["one,8,8,1", "one,8,8,2"], "line 3: one at 8/8 bits has a cost already"),
        (["one,8,8,1"], "no row for layer two"),
        (["one,4,8,1"], "nor at more: add one at 8/8"),
        ([], "lists no costs"),
        (['one,8,8,"1'], "not a CSV file"),
    ],
)
def test_a_table_that_cannot_be_used(rows: list[str], part: str, network: Network, tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", rows)
    with pytest.raises(SettingsError) as caught:
        parse_table(f"{path}:12ms", network)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("latency.csv", "write TABLE.csv:LIMIT"),
        (":12ms", "write TABLE.csv:LIMIT"),
        ("gone.csv:12ms", "cannot read gone.csv"),
        ("gone.csv:soon", "'soon' is not a quantity"),
    ],
)
def test_a_budget_that_names_none(text: str, part: str, network: Network) -> None:
    with pytest.raises(SettingsError, match=part.replace(".", r"\.")):
        parse_table(text, network)


def test_other_files(network: Network, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SettingsError, match="first line has to be layer,w_bits,a_bits,cost"):
        parse_table(f"{tmp_path / 'other.csv'}:1", network)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(SettingsError, match="is not UTF-8 text"):
        parse_table(f"{tmp_path / 'bytes.csv'}:1", network)
    with pytest.raises(SettingsError, match="cannot read"):
        parse_table(f"{tmp_path}:1", network)
    fine = written(tmp_path / "fine.csv", [*all_at_8(network), f"one,4,4,0.{'0' * 20}1"])
    budget = parse_table(f"{fine}:{MOST_STEPS}", network)
    # more digits than a limit of this size can tell apart are rounded up
    assert budget.metric.costs["one"][4, 4] == 1
