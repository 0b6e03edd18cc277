"""Budgets and pins as users write them."""

from __future__ import annotations

import pytest

from infoq_onnx.allocation.bounds import parse_budget, parse_pins
from infoq_onnx.allocation.costs import Budget
from infoq_onnx.allocation.metrics import METRICS
from infoq_onnx.errors import SettingsError
from infoq_onnx.schema import Bound, Network, Unit

from .networks import make_layer, make_network, make_resnet18


@pytest.fixture(scope="module")
def resnet18() -> Network:
    return make_resnet18()


@pytest.fixture(scope="module")
def attention() -> Network:
    return make_network(
        [
            make_layer("/block/qkv", ("x",), macs=100, parameters=10),
            make_layer("/block/attend", ("q", "k"), macs=50),
            make_layer("/head[0]", ("y",), macs=20, parameters=20),
        ],
        {"x": 5, "q": 6, "k": 7, "y": 8},
    )


@pytest.mark.parametrize(
    ("metric", "text", "limit"),
    [
        ("bitops", "23.04G", 23.04e9),
        ("bitops", "uniform:3/3", 16_326_660_096),
        ("size", "4.5MiB", 4_718_592),
        ("size", "900KB", 900_000),
        ("size", "uniform:3", 11_678_912 * 3 / 8),
        ("size", "uniform:3/8", 11_678_912 * 3 / 8),
        ("compression", "10.66", 10.66),
        ("compression", "10.66x", 10.66),
        ("compression", "uniform:3/8", 32 / 3),
        ("avg_weight_bits", "3.0", 3.0),
        ("avg_act_bits", "4", 4.0),
        ("avg_act_bits", "uniform:/4", 4.0),
    ],
)
def test_bound(resnet18: Network, metric: str, text: str, limit: float) -> None:
    assert parse_budget(metric, text, resnet18) == Budget(METRICS[metric], Bound(metric, limit, text))


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("bitops", "many"),
        ("bitops", "-3G"),
        ("bitops", "1.5MiB"),
        ("bitops", "uniform:3"),
        ("bitops", "uniform:9/9"),
        ("bitops", "uniform:"),
        ("bitops", "uniform:/"),
        ("bitops", "uniform:3/3/3"),
        ("size", "uniform:/4"),
        ("compression", "0x"),
        ("avg_weight_bits", "3G"),
        ("avg_act_bits", "nan"),
    ],
)
def test_bound_that_makes_no_sense(resnet18: Network, metric: str, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_budget(metric, text, resnet18)
    assert f"`{metric}`" in str(caught.value)
    assert text.removeprefix("uniform:") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bound_on_weights_of_a_network_without_any() -> None:
    network = make_network([make_layer("attend", ("a", "b"), macs=10)], {"a": 1, "b": 1})
    with pytest.raises(SettingsError, match="`compression` 10x: the model has nothing"):
        parse_budget("compression", "10x", network)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/block/qkv=4/6", {Unit("weight", "/block/qkv"): 4, Unit("activation", "x"): 6}),
        ("/block/qkv=4", {Unit("weight", "/block/qkv"): 4}),
        ("/block/qkv=4/", {Unit("weight", "/block/qkv"): 4}),
        ("/block/qkv=/4", {Unit("activation", "x"): 4}),
        ("first=8/8", {Unit("weight", "/block/qkv"): 8, Unit("activation", "x"): 8}),
        ("last=8/8", {Unit("weight", "/head[0]"): 8, Unit("activation", "y"): 8}),
        ("/head[0]=2", {Unit("weight", "/head[0]"): 2}),
        ("/block/attend=/5", {Unit("activation", "q"): 5, Unit("activation", "k"): 5}),
        ("*=3", {Unit("weight", "/block/qkv"): 3, Unit("weight", "/head[0]"): 3}),
    ],
)
def test_pin(attention: Network, text: str, expected: dict[Unit, int]) -> None:
    pins = parse_pins([text], attention)
    assert pins.bits == expected
    assert pins.texts == (text,)


def test_pins_add_up_and_may_agree(resnet18: Network) -> None:
    pins = parse_pins(["first=8/8", "conv1=8", "layer?.0.downsample=4", "layer2.0.conv1=/5"], resnet18)
    assert len(pins.bits) == 2 + 3 + 1


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["conv_1=8/8"], r"no layer is called 'conv_1'; the closest are conv1\b"),
        (["§=8"], r"no layer is called '§'; the first is conv1"),
        (["conv1"], "write NAME=W/A"),
        (["conv1=9/8"], "among 2, 3, 4, 5, 6, 7, 8"),
        (["conv1=1"], "among 2, 3"),
        (["conv1=eight"], "'eight'"),
        (["conv1="], "is none of W/A, W and /A"),
        (["conv1=8", "first=4"], "`pins` first=4 contradicts `pins` conv1=8 on weights conv1"),
        (
            ["layer2.0.conv1=/4", "layer2.0.downsample=8/8"],
            "contradicts `pins` layer2.0.conv1=/4 on activation layer2.0.x",
        ),
    ],
)
def test_pins_that_make_no_sense(resnet18: Network, texts: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        parse_pins(texts, resnet18)
    assert "\n" not in str(caught.value)


def test_pin_of_weights_that_a_layer_does_not_have(attention: Network) -> None:
    with pytest.raises(SettingsError, match="/block/attend has no weights"):
        parse_pins(["/block/attend=4"], attention)


def test_pins_take_the_given_widths_and_8(attention: Network) -> None:
    assert parse_pins(["first=8/4"], attention, (2, 4)).bits[Unit("activation", "x")] == 4
    with pytest.raises(SettingsError, match="among 2, 4, 8"):
        parse_pins(["first=3"], attention, (2, 4))
