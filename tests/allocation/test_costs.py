"""Exact counts against figures worked out by hand and against plain sums."""

from __future__ import annotations

import dataclasses

import pytest

from infoq_onnx.allocation.costs import Budget, costs, float_costs, total_of, uniform
from infoq_onnx.allocation.metrics import METRICS
from infoq_onnx.schema import Bound, Network, units_of

from .networks import make_layer, make_network, make_resnet18


@pytest.fixture(scope="module")
def resnet18() -> Network:
    return make_resnet18()


def budget_of(metric: str, limit: float) -> Budget:
    return Budget(METRICS[metric], Bound(metric, limit, ""))


def with_wide_ends(network: Network, bits: int) -> tuple[dict[str, int], dict[str, int]]:
    weights, activations = uniform(network, bits, bits)
    return weights | {"conv1": 8, "fc": 8}, activations | {"image": 8, "pooled": 8}


def test_resnet18_is_the_published_network(resnet18: Network) -> None:
    assert sum(layer.macs for layer in resnet18.layers) == 1_814_073_344
    assert sum(layer.parameters for layer in resnet18.layers) == 11_678_912
    assert (len(resnet18.layers), len(resnet18.groups)) == (21, 18)


def test_resnet18_all_layers_at_3_bits(resnet18: Network) -> None:
    found = costs(resnet18, *uniform(resnet18, 3, 3))
    assert found.bitops == 9 * 1_814_073_344
    assert round(found.bitops / 1e9, 2) == 16.33
    assert found.weight_bytes == 11_678_912 * 3 / 8
    assert round(found.weight_bytes / 2**20, 2) == 4.18
    assert found.compression == 32 / 3
    assert (found.avg_weight_bits, found.avg_act_bits) == (3.0, 3.0)


def test_resnet18_with_both_ends_at_8_bits(resnet18: Network) -> None:
    found = costs(resnet18, *with_wide_ends(resnet18, 3))
    assert round(found.bitops / 1e9, 3) == 22.846
    assert round(found.weight_bytes / 2**20, 2) == 4.49
    assert round(found.compression, 2) == 9.93


def test_float_bitops_as_hawq_counts_them(resnet18: Network) -> None:
    assert round(costs(resnet18, *uniform(resnet18, 32, 32)).bitops / 1e9) == 1858


def test_matmul_of_activations_shared_groups_and_squares() -> None:
    network = make_network(
        [
            make_layer("conv", ("a",), macs=10, parameters=7),
            make_layer("side", ("a",), macs=100, parameters=5),
            make_layer("attend", ("a", "b"), macs=1000),
            make_layer("gram", ("b", "b"), macs=10_000),
        ],
        {"a": 3, "b": 4},
    )
    found = costs(network, {"conv": 2, "side": 3}, {"a": 5, "b": 7})
    assert found.bitops == 10 * 2 * 5 + 100 * 3 * 5 + 1000 * 5 * 7 + 10_000 * 7 * 7
    assert found.weight_bytes == (7 * 2 + 5 * 3) / 8
    assert found.avg_weight_bits == (7 * 2 + 5 * 3) / 12
    assert found.compression == 32 * 12 / (7 * 2 + 5 * 3)
    assert found.avg_act_bits == (3 * 5 + 4 * 7) / 7


def test_counts_beyond_float64_stay_exact() -> None:
    network = make_network([make_layer("huge", ("x",), macs=2**60 + 1, parameters=1)], {"x": 1})
    assert costs(network, {"huge": 7}, {"x": 7}).bitops == 49 * (2**60 + 1)


def test_network_without_weights_counts_as_8_bits() -> None:
    network = make_network([make_layer("attend", ("a", "b"), macs=10)], {"a": 1, "b": 1})
    found = costs(network, {}, {"a": 4, "b": 2})
    assert (found.bitops, found.weight_bytes, found.compression, found.avg_weight_bits) == (80, 0.0, 4.0, 8.0)


def test_weights_that_repeat_others_are_no_part_of_what_is_compressed() -> None:
    """They are multiplied with and stored; the model as it was given does not have them."""
    network = dataclasses.replace(
        make_network([make_layer("a", ("x",), macs=100, parameters=110)], {"x": 3}), repeated=10
    )
    found, before = costs(network, {"a": 4}, {"x": 8}), float_costs(network)
    assert (found.bitops, found.weight_bytes, found.avg_weight_bits) == (3200, 55.0, 4.0)
    assert found.compression == 400 / 55
    assert (before.weight_bytes, before.compression, before.bitops) == (400.0, 1.0, 102_400)
    budget = budget_of("compression", found.compression)
    assert budget.largest_total(network) == 440
    assert budget.meets(budget.metric.value(network, 440))
    assert not budget.meets(budget.metric.value(network, 441))


def test_uniform_names_every_unit(resnet18: Network) -> None:
    weights, activations = uniform(resnet18, 4, 6)
    assert len(weights) + len(activations) == len(units_of(resnet18))
    assert set(weights.values()) == {4}
    assert set(activations.values()) == {6}


@pytest.mark.parametrize("metric", ["bitops", "size", "compression", "avg_weight_bits", "avg_act_bits"])
@pytest.mark.parametrize("width", [2, 3, 5, 6, 7])
def test_a_reported_value_is_a_limit_that_its_own_allocation_meets_exactly(
    resnet18: Network, metric: str, width: int
) -> None:
    counted = METRICS[metric]
    total = total_of(counted.terms(resnet18), dict.fromkeys(units_of(resnet18), width))
    budget = budget_of(metric, counted.value(resnet18, total))
    assert budget.largest_total(resnet18) == total
    assert budget.meets(counted.value(resnet18, total))
    assert not budget.meets(counted.value(resnet18, total + 1))


def test_no_largest_total_where_8_bits_are_within_the_bound(resnet18: Network) -> None:
    assert budget_of("bitops", 1e300).largest_total(resnet18) is None
    assert budget_of("compression", 4.0).largest_total(resnet18) is None
