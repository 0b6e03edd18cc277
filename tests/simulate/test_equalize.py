"""Equalisation in front of depthwise convolutions: another network with the same outputs, and channels more alike."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from infoq_onnx.graph.editing import expose
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.ort import run_session
from infoq_onnx.graph.session import open_session
from infoq_onnx.schema import Network
from infoq_onnx.simulate.equalization.equalize import (
    LARGEST_FACTOR,
    Factors,
    equalized,
    factors_of,
    find_factors,
    pairs,
)
from infoq_onnx.simulate.running.batching import logits_of
from infoq_onnx.simulate.simulation import simulation
from tests.networks import SMALL, batchnorm_net
from tests.prepared import Ready, dataset_of, images, ready, searched, small, spread_of
from tests.simulate.uneven import (
    COMMUTING,
    OTHERS,
    Between,
    chain,
    clipped_and_padded,
    clipped_twice,
    clipped_wider_again,
    computed_bias,
    network,
    one_dimensional,
    padded_channels,
    relu,
    relu6,
    second_of_kind,
    shared_reader,
)

Float32 = npt.NDArray[np.float32]
every_between = pytest.mark.parametrize("between", COMMUTING, ids=lambda between: between.__name__)


# --------------------------------------------------------------------------------------------------------- which pairs


def names(model: onnx.ModelProto) -> list[tuple[str, str]]:
    graph, found, _ = searched(model)
    return [(pair.first.name, pair.second.name) for pair in pairs(graph, found)]


@every_between
def test_what_commutes_with_a_factor_may_lie_between(between: Between) -> None:
    graph, found, _ = searched(network(between))
    (pair,) = pairs(graph, found)
    assert (pair.first.name, pair.second.name) == ("first", "second")
    assert pair.tensor == pair.second.groups[0]
    bounds = {relu6: 6.0, clipped_and_padded: 6.0, clipped_twice: 2.0, clipped_wider_again: 2.0}
    assert pair.bound == bounds.get(between, np.inf)


@pytest.mark.parametrize("between", OTHERS, ids=lambda between: between.__name__)
def test_anything_else_between_is_left_alone(between: Between) -> None:
    assert names(network(between)) == []


def test_pairs_of_the_small_networks() -> None:
    """Of the depthwise ones most read what a shortcut reads too, or a sum."""
    found = {name: names(make()) for name, make in SMALL.items()}
    assert {name: pair for name, pair in found.items() if pair} == {"batchnorm": [("grouped", "depthwise")]}
    assert names(chain()) == [("first", "second"), ("second", "third")]
    assert names(one_dimensional()) == [("first", "second")]


def test_only_depthwise_convolutions_are_second() -> None:
    """Dense and grouped ones mix channels in each row; several outputs a channel have no factor of their own."""
    assert names(second_of_kind(1)) == names(second_of_kind(2)) == names(second_of_kind(8, 16)) == []
    assert names(second_of_kind(8)) == [("first", "second")]


@pytest.mark.parametrize("behind", ["first_out", "relu_out"])
def test_what_others_read_is_left_alone(behind: str) -> None:
    assert names(shared_reader(behind)) == []


@pytest.mark.parametrize("tensor", ["first_out", "relu_out"])
def test_outputs_of_the_network_are_left_alone(tensor: str) -> None:
    model = second_of_kind(8)
    model.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["batch", 8, 6, 6]))
    assert names(model) == []


# ------------------------------------------------------------------------------------------------------------- factors


magnitudes = st.just(0.0) | st.floats(2.0**-100, 128, width=32)


@settings(derandomize=True, deadline=None)
@given(st.lists(magnitudes, min_size=1, max_size=8), st.sampled_from([1.0, 6.0, np.inf]))
def test_factors_are_the_largest_powers_of_two_that_stay_in_range(values: list[float], bound: float) -> None:
    largest = np.minimum(np.array(values, dtype=np.float32), np.float32(bound))
    factors = factors_of(largest, bound)
    assert (factors.dtype, factors.shape) == (np.float32, largest.shape)
    powers = [2.0**exponent for exponent in range(6)]
    assert powers[-1] == LARGEST_FACTOR
    for value, factor in zip(largest, factors, strict=True):
        fitting = [power for power in powers if value * power <= largest.max()]
        assert factor == (max(fitting) if value > 0 else 1.0)


def test_what_is_clipped_has_no_room() -> None:
    np.testing.assert_array_equal(factors_of(np.array([6, 3, 1.4, 0.001, 0], np.float32), 6.0), [1, 2, 4, 32, 1])
    # beyond a bound that not even the largest reaches nothing is brought
    np.testing.assert_array_equal(factors_of(np.array([4, 3, 1.4, 0.001, 0], np.float32), 6.0), [1, 1, 2, 32, 1])
    np.testing.assert_array_equal(factors_of(np.zeros(3, np.float32), 6.0), [1, 1, 1])


def test_a_channel_may_hold_next_to_nothing() -> None:
    np.testing.assert_array_equal(factors_of(np.array([6, 1e-39], np.float32), 6.0), [1, 32])


def factors_for(model: onnx.ModelProto, count: int = 32) -> tuple[Graph, Network, Float32, Factors]:
    graph, found, _ = searched(model)
    values = images(found.input_shape, count)
    return graph, found, values, find_factors(graph, found, dataset_of(values), lambda _: None)


def inside(graph: Graph, values: Float32, tensor: str) -> Float32:
    return run_session(open_session(expose(graph.model, [tensor])), {graph.input: values}, [tensor])[0]


def ranges_of(values: Float32) -> Float32:
    """What each channel reaches."""
    return np.asarray(np.abs(values).max(axis=(0, *range(2, values.ndim))), dtype=np.float32)


@every_between
def test_channels_become_more_alike(between: Between) -> None:
    """Those that get the largest factor aside, all reach more than half the range of the largest."""
    graph, found, values, factors = factors_for(network(between))
    (pair,) = pairs(graph, found)
    factor = factors[pair.tensor]
    assert np.all(factor >= 1)
    assert np.all(factor <= LARGEST_FACTOR)
    assert factor.max() > 4
    before = ranges_of(inside(graph, values, pair.tensor))
    after = ranges_of(inside(equalized(graph, found, factors), values, pair.tensor))
    np.testing.assert_array_equal(after, before * factor)
    assert after.max() == before.max()
    assert np.all((after > before.max() / 2) | (factor == LARGEST_FACTOR))
    assert np.log2(after).std() < 0.5 * np.log2(before).std()


def test_progress_counts_images() -> None:
    graph, found, _ = searched(network(relu))
    told: list[int] = []
    find_factors(graph, found, dataset_of(images((3, 10, 10), 150)), told.append)
    assert sum(told) == 150


def test_every_batch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, whole = factors_for(network(relu))
    monkeypatch.setattr("infoq_onnx.simulate.equalization.channel_absmax.batch_size", lambda graph, kept: 7)  # noqa: ARG005
    *_, parts = factors_for(network(relu))
    assert whole.keys() == parts.keys()
    for tensor, factor in whole.items():
        np.testing.assert_array_equal(factor, parts[tensor])


def test_without_pairs_there_is_nothing_to_run() -> None:
    of = small("residual")
    assert find_factors(of.graph, of.network, of.dataset, lambda _: pytest.fail("images were run")) == {}


# ---------------------------------------------------------------------------------------------------------- the network


MODELS = {between.__name__: network(between) for between in COMMUTING}
MODELS |= {"chain": chain(), "one_dimensional": one_dimensional(), "batchnorm": batchnorm_net()}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@every_model
def test_float_outputs_are_the_same_to_the_bit(model: onnx.ModelProto) -> None:
    graph, found, values, factors = factors_for(model)
    assert any(factor.max() > 1 for factor in factors.values())
    other = equalized(graph, found, factors)
    before, after = (logits_of(open_session(g.model), g, dataset_of(values), 16) for g in (graph, other))
    np.testing.assert_array_equal(before, after)
    onnx.checker.check_model(other.model, full_check=True)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            computed_bias(),
            id="computed bias",
        ),
        pytest.param(
            padded_channels(),
            id="padded channels",
        ),
    ],
)
def test_what_factors_cannot_be_built_into_stays_the_same(model: onnx.ModelProto) -> None:
    graph, found, values, factors = factors_for(model)
    other = equalized(graph, found, factors)
    before, after = (logits_of(open_session(g.model), g, dataset_of(values), g.batch or 16) for g in (graph, other))
    np.testing.assert_array_equal(before, after)


@every_model
def test_only_the_weights_and_biases_of_pairs_change(model: onnx.ModelProto) -> None:
    graph, found, _, factors = factors_for(model)
    kept = graph.model.SerializeToString()
    other = equalized(graph, found, factors)
    assert graph.model.SerializeToString() == kept
    assert other.nodes == graph.nodes
    may = set()
    for pair in pairs(graph, found):
        may |= {pair.first.weight, pair.first.bias, pair.second.weight}
    assert {name for name in graph.initializers if other.initializers[name] != graph.initializers[name]} <= may


@pytest.mark.parametrize("model", [network(relu6), network(clipped_and_padded), network(clipped_twice), chain()])
def test_no_channel_is_brought_beyond_its_clip(model: onnx.ModelProto) -> None:
    """On calibration images a channel with a factor is never clipped, in front of the Clip neither."""
    graph, found, values, factors = factors_for(model)
    other = equalized(graph, found, factors)
    pair = pairs(graph, found)[0]
    factor, before = factors[pair.tensor], inside(graph, values, pair.first.output)
    after = inside(other, values, pair.first.output)
    np.testing.assert_array_equal(after, before * factor[:, None, None])
    assert after[:, factor > 1].max() <= pair.bound
    assert before.max() > pair.bound


def test_factors_that_are_not_given_are_1() -> None:
    graph, found, _, factors = factors_for(chain())
    first, second = pairs(graph, found)
    other = equalized(graph, found, {second.tensor: factors[second.tensor]})
    assert other.initializers["first_w"] == graph.initializers["first_w"]
    np.testing.assert_array_equal(
        other.constant("second_w"), graph.constant("second_w") * factors[second.tensor].reshape(-1, 1, 1, 1)
    )
    assert equalized(graph, found, {}).model == graph.model
    assert first.tensor in factors


def test_layers_and_pairs_are_the_same_afterwards() -> None:
    """Another pass finds nothing left to do, but for channels that had more than the largest factor to go."""
    graph, found, values, factors = factors_for(network(relu))
    again = Graph(equalized(graph, found, factors).model)
    assert pairs(again, found) == pairs(graph, found)
    for tensor, factor in find_factors(again, found, dataset_of(values), lambda _: None).items():
        assert np.all((factor == 1) | (factors[tensor] == LARGEST_FACTOR))


# ------------------------------------------------------------------------------------------------------- what it is for


def error_of(of: Ready, activations: int) -> float:
    """How far 8-bit weights and such activations bring the logits from the float network's, on other images."""
    held_out = dataset_of(images(of.network.input_shape, 64, seed=9))
    model = simulation(of.quantizable, of.uniform(8, activations))
    exact = logits_of(open_session(of.graph.model), of.graph, held_out, 64)
    return spread_of(logits_of(open_session(model, integer_kernels=False), of.graph, held_out, 64) - exact, exact)


@pytest.mark.parametrize("between", [relu, relu6, clipped_and_padded], ids=lambda between: between.__name__)
def test_4_bit_activations_lose_less(between: Between) -> None:
    graph, found, values, factors = factors_for(network(between))
    before, after = ready(graph.model, values), ready(equalized(graph, found, factors).model, values)
    assert error_of(after, 4) < 0.2 * error_of(before, 4)
