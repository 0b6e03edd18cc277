"""Blocks cut a network where everything flows through one tensor."""

from __future__ import annotations

import pytest

from infoq_onnx.training.blocks import blocks_of
from tests.networks import SMALL
from tests.prepared import small


@pytest.mark.parametrize("name", SMALL)
def test_blocks_follow_one_another_and_hold_every_layer_once(name: str) -> None:
    ready = small(name)
    blocks = blocks_of(ready.graph, ready.network)
    assert blocks[0].start == ready.graph.input
    assert blocks[-1].end == ready.graph.output
    assert [block.end for block in blocks[:-1]] == [block.start for block in blocks[1:]]
    assert sorted(layer for block in blocks for layer in block.layers) == sorted(
        layer.name for layer in ready.network.layers
    )
    assert all(block.layers for block in blocks)


@pytest.mark.parametrize("name", SMALL)
def test_what_is_behind_a_block_depends_on_its_end_only(name: str) -> None:
    ready = small(name)
    graph = ready.graph
    for block in blocks_of(graph, ready.network)[:-1]:
        before = graph.ancestors(block.end)
        for node in graph.nodes:
            if set(node.output) <= before:
                continue
            read = {one for one in node.input if one in before and one not in graph.initializers}
            read = {one for one in read if one in graph.descendants([graph.input])}
            assert read <= {block.end}, node.name


def test_a_chain_has_one_block_per_layer() -> None:
    ready = small("mlp")
    assert [len(block.layers) for block in blocks_of(ready.graph, ready.network)] == [1] * len(ready.network.layers)


def test_residual_blocks_stay_whole() -> None:
    ready = small("residual")
    assert max(len(block.layers) for block in blocks_of(ready.graph, ready.network)) > 1
