"""The order of nodes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from infoq_onnx.graph.passes.sort_nodes import sort_nodes
from tests.graph.compare import assert_same_outputs
from tests.networks import SMALL


@pytest.mark.parametrize("name", SMALL)
def test_order_depends_on_the_graph_alone(name: str) -> None:
    model = SMALL[name]()
    sort_nodes(model)
    onnx.checker.check_model(model, full_check=True)
    order = [node.name for node in model.graph.node]
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(model)
    del shuffled.graph.node[:]
    for index in np.random.default_rng(0).permutation(len(order)):
        shuffled.graph.node.append(model.graph.node[index])
    assert sort_nodes(shuffled) > 0
    assert [node.name for node in shuffled.graph.node] == order
    assert sort_nodes(shuffled) == 0
    assert_same_outputs(model, shuffled)
