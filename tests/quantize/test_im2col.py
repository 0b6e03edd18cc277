"""Rows of weights times columns of inputs is what onnxruntime's Conv and MatMul compute."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from infoq_onnx.graph.ort import run
from infoq_onnx.quantize.im2col import (
    Windows,
    conv_columns,
    conv_outputs,
    from_rows,
    matrix_columns,
    to_rows,
)


class Case(NamedTuple):
    """A convolution: x [n, C, *spatial], weight [O, C/G, *kernel]."""

    x: np.ndarray
    weight: np.ndarray
    windows: Windows


def make(n: int, channels: int, outputs: int, spatial: tuple[int, ...], windows: Windows, seed: int = 0) -> Case:
    """Draw a convolution's input and weight; `channels` and `outputs` are those of a group."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, windows.groups * channels, *spatial), dtype=np.float32)
    weight = random.standard_normal((windows.groups * outputs, channels, *windows.kernel), dtype=np.float32)
    return Case(x, weight, windows)


def convolved(case: Case) -> np.ndarray:
    """Let onnxruntime compute it, without a bias."""
    windows = case.windows
    node = helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        strides=windows.strides,
        dilations=windows.dilations,
        pads=[*windows.pads_before, *windows.pads_after],
        group=windows.groups,
    )
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
        for name, value in (("x", case.x), ("w", case.weight))
    ]
    graph = helper.make_graph([node], "conv", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result: np.ndarray = run(model, {"x": case.x, "w": case.weight})[0]
    return result


def assert_is_the_convolution(case: Case) -> None:
    expected = conv_outputs(convolved(case), case.windows.groups)
    columns = conv_columns(case.x, case.windows)
    rows = to_rows(case.weight, 0, case.windows.groups)
    assert columns.dtype == np.float32
    assert columns.flags.c_contiguous
    assert columns.shape == (*expected.shape[:2], math.prod(case.weight.shape[1:]))
    found = columns @ rows.transpose(0, 2, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * (1 + np.abs(expected).max()))


@st.composite
def cases(draw: Any) -> Case:
    rank = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    kernel, strides, dilations = each(1, 3), each(1, 3), each(1, 2)
    before, after = each(0, 2), each(0, 2)
    least = [dilation * (size - 1) + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    spatial = tuple(
        max(1, extent - pad_before - pad_after) + draw(st.integers(0, 4))
        for extent, pad_before, pad_after in zip(least, before, after, strict=True)
    )
    groups = draw(st.integers(1, 3))
    windows = Windows(kernel, strides, dilations, before, after, groups)
    n, channels, outputs = (draw(st.integers(1, 3)) for _ in range(3))
    return make(n, channels, outputs, spatial, windows, draw(st.integers(0, 99)))


@settings(derandomize=True, deadline=None, max_examples=120)
@given(cases())
def test_any_convolution(case: Case) -> None:
    assert_is_the_convolution(case)


@pytest.mark.parametrize(
    ("channels", "outputs", "spatial", "windows"),
    [
        (3, 8, (9, 7), Windows((3, 3), (2, 2), (1, 1), (1, 1), (1, 1), 1)),
        (1, 1, (9, 9), Windows((3, 3), (1, 1), (1, 1), (1, 1), (1, 1), 8)),
        (1, 2, (9, 9), Windows((5, 5), (2, 2), (1, 1), (2, 2), (2, 2), 6)),
        (4, 3, (8, 8), Windows((3, 1), (1, 2), (2, 1), (0, 1), (3, 0), 2)),
        (5, 4, (6, 6), Windows((1, 1), (1, 1), (1, 1), (0, 0), (0, 0), 1)),
        (6, 3, (4, 4), Windows((4, 4), (1, 1), (1, 1), (0, 0), (0, 0), 1)),
        (2, 2, (17,), Windows((5,), (3,), (2,), (4,), (0,), 2)),
        (2, 2, (5, 6, 7), Windows((2, 3, 3), (1, 2, 1), (1, 1, 2), (0, 1, 2), (1, 1, 2), 2)),
    ],
    ids=["stem", "depthwise", "multiplier", "lopsided", "pointwise", "whole image", "1-D", "3-D"],
)
def test_forms_that_networks_have(channels: int, outputs: int, spatial: tuple[int, ...], windows: Windows) -> None:
    assert_is_the_convolution(make(2, channels, outputs, spatial, windows))


def test_columns_come_image_by_image_and_row_by_row() -> None:
    x = np.arange(2 * 2 * 3, dtype=np.float32).reshape(2, 1, 2, 3)
    pointwise = Windows((1, 1), (1, 1), (1, 1), (0, 0), (0, 0), 1)
    np.testing.assert_array_equal(conv_columns(x, pointwise), x.reshape(1, 12, 1))
    np.testing.assert_array_equal(conv_outputs(x, 1), x.reshape(1, 12, 1))


def test_columns_are_in_the_order_of_the_weight() -> None:
    x = np.random.default_rng(0).standard_normal((1, 4, 3, 3), dtype=np.float32)
    whole = Windows((3, 3), (1, 1), (1, 1), (0, 0), (0, 0), 2)
    np.testing.assert_array_equal(conv_columns(x, whole), x.reshape(2, 1, 18))


@pytest.mark.parametrize("shape", [(7, 6), (2, 5, 6), (2, 3, 4, 6)])
def test_matrix_products(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    x, weight = random.standard_normal(shape, dtype=np.float32), random.standard_normal((6, 5), dtype=np.float32)
    found = matrix_columns(x) @ to_rows(weight, 1, 1).transpose(0, 2, 1)
    np.testing.assert_allclose(found, matrix_columns(x @ weight), rtol=1e-4, atol=1e-5)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 4), st.data())
def test_rows_are_brought_back(others: list[int], groups: int, each: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(others)))
    shape = (*others[:axis], groups * each, *others[axis:])
    codes = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    rows = to_rows(codes, axis, groups)
    assert rows.dtype == np.int8
    assert rows.shape == (groups, each, math.prod(others))
    back = from_rows(rows, shape, axis)
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, codes)


def test_rows_are_output_channels() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 2, 3, 3)).astype(np.float32)
    rows = to_rows(weight, 0, 3)
    for channel in range(6):
        np.testing.assert_array_equal(rows[channel // 2, channel % 2], weight[channel].ravel())
