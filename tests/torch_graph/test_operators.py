"""Every operator against the test cases of the ONNX standard."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnx.backend.test.case.node import collect_testcases  # noqa: E402

from infoq_onnx.graph.editing import opset_of  # noqa: E402
from infoq_onnx.torch_graph.attributes import Attributes  # noqa: E402
from infoq_onnx.torch_graph.graph_module import obstacle  # noqa: E402
from infoq_onnx.torch_graph.operators import OPERATORS  # noqa: E402

_WITHOUT_CASES = {"Cast", "CastLike", "GlobalLpPool"}
"""The standard has no cases for these, or only for types that numpy does not have; the last is tested below."""
_UNLIKE = {
    # reductions of nothing, which no network has
    "test_reduce_max_empty_set",
    "test_reduce_max_empty_set_bool",
    "test_reduce_min_empty_set",
    # torch cannot pad bytes with minus infinity; activations are float
    "test_maxpool_2d_uint8",
}
_UNSIGNED = ("uint16", "uint32", "uint64")
"""torch has hardly any arithmetic in these types."""


def _cases() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    return {
        case.name: case
        for case in found
        if case.model is not None
        and len(case.model.graph.node) == 1
        and not case.model.graph.node[0].domain
        and case.model.graph.node[0].op_type in OPERATORS
        and not case.name.endswith(_UNSIGNED)
        and case.name not in _UNLIKE
        and all(
            isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub" and value.dtype.itemsize < 16
            for values in case.data_sets[0]
            for value in values
        )
    }


CASES = _cases()


def test_all_operators_have_cases() -> None:
    covered = {case.model.graph.node[0].op_type for case in CASES.values()}
    assert set(OPERATORS) - covered == _WITHOUT_CASES
    assert len(CASES) > 700


@pytest.mark.parametrize("kind", sorted({case.model.graph.node[0].op_type for case in CASES.values()}))
def test_operator(kind: str) -> None:
    ran = 0
    for name, case in CASES.items():
        node = case.model.graph.node[0]
        if node.op_type != kind or obstacle(node):
            continue
        inputs, expected = case.data_sets[0]
        given = {
            value.name: torch.from_numpy(np.array(array))
            for value, array in zip(case.model.graph.input, inputs, strict=True)
        }
        found = OPERATORS[kind](Attributes(node, opset_of(case.model)), *(given.get(name) for name in node.input))
        outputs = dict(zip(node.output, found if isinstance(found, tuple) else (found,), strict=False))
        for value, array in zip(case.model.graph.output, expected, strict=True):
            got = outputs[value.name].numpy()
            assert got.shape == np.shape(array), name
            np.testing.assert_allclose(
                got.astype(np.float64), np.asarray(array, dtype=np.float64), rtol=1e-3, atol=1e-5, err_msg=name
            )
        ran += 1
    assert ran


def test_global_lp_pool() -> None:
    from onnx import helper

    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 4, 5)))
    node = helper.make_node("GlobalLpPool", ["x"], ["y"], p=3)
    found = OPERATORS["GlobalLpPool"](Attributes(node, 18), x)
    expected = (x.abs() ** 3).sum(dim=(2, 3), keepdim=True) ** (1 / 3)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("test_lstm_with_peepholes", "LSTM with sequence lengths"),
        ("test_gru_batchwise", "GRU with layout"),
        ("test_resize_downsample_scales_linear_antialias", "Resize with antialias"),
        ("test_maxpool_with_argmax_2d_precomputed_pads", "MaxPool with indices"),
        ("test_dequantizelinear_blocked", "DequantizeLinear with block_size"),
    ],
)
def test_what_is_not_implemented_is_refused(name: str, told: str) -> None:
    assert obstacle(CASES[name].model.graph.node[0]) == told
