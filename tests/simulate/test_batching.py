"""Batches fit memory and what the graph is fixed to, and nothing of a filled-up batch is left in results."""

from __future__ import annotations

import numpy as np
import pytest

from infoq_onnx.graph.ort import run
from infoq_onnx.graph.session import open_session
from infoq_onnx.simulate.running import batching
from infoq_onnx.simulate.running.batching import batch_size, logits_of, padded, run_batches
from tests.networks import mlp, residual_convnet
from tests.prepared import dataset_of, images, searched, small


def test_small_networks_run_at_the_largest_batch() -> None:
    assert batch_size(small("mlp").graph) == 128


def test_large_activations_make_batches_small(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = small("residual").graph
    largest = 4 * 8 * 16 * 16
    monkeypatch.setattr(batching, "_BATCH_BYTES", 10 * 3 * largest)
    assert batch_size(graph) == 10
    # outputs are alive besides the three that a node works on
    assert batch_size(graph, ["stem_out", "a1_out"]) == 6
    monkeypatch.setattr(batching, "_BATCH_BYTES", 1)
    assert batch_size(graph) == 1


def test_a_fixed_batch_is_kept() -> None:
    assert batch_size(searched(mlp(batch=3))[0]) == 3


def test_short_batches_are_filled_up_with_their_last_image() -> None:
    batch = images((2,), 3)
    np.testing.assert_array_equal(padded(batch, 5), batch[[0, 1, 2, 2, 2]])
    assert padded(batch, 3) is batch
    assert padded(batch, None) is batch


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_logits_do_not_depend_on_batches(batch: int | None) -> None:
    graph, _, _ = searched(residual_convnet(batch=batch))
    values = images((3, 16, 16), 10)
    found = logits_of(open_session(graph.model), graph, dataset_of(values), batch or 7)
    (expected,) = run(searched(residual_convnet())[0].model, {"x": values})
    assert found.shape == (10, 10)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_every_batch_comes_with_its_outputs() -> None:
    of = small("mlp")
    session = open_session(of.graph.model)
    seen = list(run_batches(session, of.graph, [of.graph.output], of.dataset, 20))
    assert [len(batch) for batch, _ in seen] == [20, 20, 8]
    assert [outputs[0].shape for _, outputs in seen] == [(20, 4), (20, 4), (8, 4)]
