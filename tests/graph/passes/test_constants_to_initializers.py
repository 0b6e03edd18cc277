"""Constant nodes."""

from __future__ import annotations

import numpy as np
from onnx import helper, numpy_helper

from infoq_onnx.graph.editing import initializers_of, to_array
from infoq_onnx.graph.passes.constants_to_initializers import constants_to_initializers
from tests.graph.compare import apply, operators
from tests.networks import Builder


def test_every_numeric_form_becomes_an_initializer() -> None:
    b = Builder()
    tensor = numpy_helper.from_array(np.eye(4, dtype=np.float32))
    values = {
        "t": {"value": tensor},
        "f": {"value_float": 2.0},
        "fs": {"value_floats": [1.0, 2.0, 3.0, 4.0]},
        "i": {"value_int": 1},
        "is": {"value_ints": [-1, 4]},
    }
    for name, attributes in values.items():
        b.nodes.append(helper.make_node("Constant", [], [name], **attributes))
    y = b.op("MatMul", ["x", "t"], "product")
    y = b.op("Mul", [y, "f"], "scaled")
    y = b.op("Add", [y, "fs"], "shifted")
    y = b.op("Reshape", [y, "is"], "reshaped")
    y = b.op("Gather", [y, "i"], "gathered", axis=1)
    edited, count = apply(constants_to_initializers, b.model(y, (4,), ()))
    assert count == 5
    assert "Constant" not in operators(edited)
    constants = initializers_of(edited.graph)
    assert to_array(constants["fs"]).dtype == np.float32
    assert to_array(constants["i"]).shape == ()
    np.testing.assert_array_equal(to_array(constants["is"]), [-1, 4])


def test_constant_output_stays_a_node() -> None:
    b = Builder()
    b.nodes.append(helper.make_node("Constant", [], ["flag"], value_float=1.0))
    model = b.model(b.gemm("x", "fc", 4, 3), (4,), (3,))
    model.graph.output.append(helper.make_tensor_value_info("flag", 1, []))
    _, count = apply(constants_to_initializers, model)
    assert count == 0
