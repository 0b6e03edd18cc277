"""Layers as matrix products: with a form, columns times rows are what the layer computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from infoq_onnx.graph.editing import expose
from infoq_onnx.graph.ort import run_session
from infoq_onnx.graph.session import open_session
from infoq_onnx.quantize.rounding import Rounded
from infoq_onnx.simulate.rounding.as_matmul import Form, form_of, target_of
from tests.networks import SMALL, Builder
from tests.prepared import images, searched, small
from tests.simulate.rounded import computed_bias, layer_called, left_constant, rows_for_a_bias, tensors_of


def padded_conv(auto_pad: str, size: int, kernel: int, stride: int) -> onnx.ModelProto:
    b = Builder()
    weight = b.normal("w", 4, 3, kernel, 2, fan_in=3 * kernel * 2)
    y = b.op(
        "Conv",
        ["x", weight],
        "conv",
        auto_pad=auto_pad,
        strides=[stride, 1],
        kernel_shape=[kernel, 2],
    )
    return b.model(b.classifier(b.relu(y, "relu"), 4, 3), (3, size, 7), (3,))


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(8, 3, 1), (8, 3, 2), (9, 4, 2), (9, 2, 1), (9, 1, 3), (7, 5, 4)]
)
def test_padding_that_the_operator_finds_itself(auto_pad: str, size: int, kernel: int, stride: int) -> None:
    graph, network, _ = searched(padded_conv(auto_pad, size, kernel, stride))
    form = form_of(graph, layer_called(network, "conv"))
    assert form is not None
    x = images((3, size, 7), 2)
    expected = run_session(open_session(expose(graph.model, ["conv_out"])), {"x": x}, ["conv_out"])[0]
    found = form.columns(x) @ form.rows().transpose(0, 2, 1)
    np.testing.assert_allclose(found, form.outputs(expected), atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_every_form_computes_its_layer(name: str) -> None:
    of = small(name)
    for layer in of.network.layers:
        form = form_of(of.graph, layer)
        if form is None:
            continue
        source, target = tensors_of(of, of.graph.model, [layer.groups[0], target_of(of.graph, layer)], integer=True)
        found = form.columns(source) @ form.rows().transpose(0, 2, 1)
        if layer.bias is not None:
            found += of.graph.constant(layer.bias).reshape(form.groups, 1, -1)
        np.testing.assert_allclose(found, form.outputs(target), atol=1e-4)


def test_which_layers_have_no_form() -> None:
    none = {
        name: [layer.name for layer in small(name).network.layers if form_of(small(name).graph, layer) is None]
        for name in SMALL
    }
    assert none.pop("batchnorm") == ["up"]
    assert none.pop("attention") == ["scores", "mix"]
    assert not any(none.values())


@pytest.mark.parametrize("network", [left_constant, rows_for_a_bias, computed_bias])
def test_what_is_no_plain_product_of_constant_weights_has_no_form(network: Callable[[], onnx.ModelProto]) -> None:
    graph, found, _ = searched(network())
    assert [layer.name for layer in found.layers if form_of(graph, layer) is None] == ["left"]


@pytest.mark.parametrize("name", SMALL)
def test_rounded_rows_take_the_shape_of_the_weight(name: str) -> None:
    """With every weight its own code: what the rows stand for is where the weight has it."""
    of = small(name)
    for layer in of.network.layers:
        form = form_of(of.graph, layer)
        if form is None:
            continue
        groups, rows, _ = form.rows().shape
        codes = (np.arange(form.weight.size) % 251 - 125).astype(np.int8).reshape(form.weight.shape)
        scales = np.arange(1, groups * rows + 1, dtype=np.float32)
        as_rows = Form(codes.astype(np.float32), form.channel_axis, form.groups, form.windows).rows()
        made = form.rounded(Rounded(as_rows.astype(np.int8), scales.reshape(groups, rows), 8, None, None))
        assert (made.codes.dtype, made.scales.dtype, made.bias) == (np.int8, np.float32, None)
        np.testing.assert_array_equal(made.codes, codes)
        np.testing.assert_array_equal(made.scales, scales)
        biased = form.rounded(Rounded(as_rows.astype(np.int8), scales.reshape(groups, rows), 8, None, as_rows[:, :, 0]))
        assert biased.bias is not None
        along = np.moveaxis(codes, form.channel_axis, 0).reshape(groups * rows, -1)
        np.testing.assert_array_equal(biased.bias, along[:, 0])
