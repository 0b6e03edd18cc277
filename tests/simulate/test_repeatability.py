"""A model that is no function of one image is found by running it, before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from infoq_onnx.errors import ModelError
from infoq_onnx.pipeline import analyze, plan
from infoq_onnx.simulate.running.repeatability import _differ, _gaps, require_repeatable
from tests.networks import SMALL, Builder
from tests.pipeline.cases import QUICK
from tests.prepared import dataset_of, images, is_one_line, searched, small


def written(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def complaint(model: onnx.ModelProto, folder: Path) -> str:
    graph, network, _ = searched(model)
    with pytest.raises(ModelError) as caught:
        require_repeatable(graph, written(model, folder), dataset_of(images(network.input_shape, 20)))
    assert is_one_line(caught.value)
    return str(caught.value)


def across_the_batch(kind: str, batch: int | None) -> onnx.ModelProto:
    """Vectors, of which something is computed along the batch axis."""
    b = Builder()
    y = b.relu(b.gemm("x", "one", 12, 8), "relu")
    if kind == "mean":
        y = b.op("Sub", [y, b.op("ReduceMean", [y], "seen", axes=[0], keepdims=1)], "sub")
    elif kind == "softmax":
        y = b.op("Softmax", [y], "seen", axis=0)
    elif kind == "cumsum":
        # the last image sees all others, the first none
        y = b.op("CumSum", [y, b.constant("axis", 0, np.int64)], "seen", reverse=int(batch is not None))
    return b.model(b.gemm(y, "two", 8, 4), (12,), (4,), batch)


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("kind", ["mean", "softmax", "cumsum"])
def test_what_looks_along_the_batch(kind: str, batch: int | None, tmp_path: Path) -> None:
    told = complaint(across_the_batch(kind, batch), tmp_path)
    assert ("alone than in a batch of 8" if batch is None else "beside others than in a batch of 4") in told
    # a mean is no image's; what uses it is
    first = "'sub'" if kind == "mean" else "'seen'"
    assert f"{first} is the first node to differ" in told


@pytest.mark.parametrize("name", SMALL)
def test_functions_of_one_image(name: str, tmp_path: Path) -> None:
    of = small(name)
    require_repeatable(of.graph, written(SMALL[name](), tmp_path), of.dataset)


def test_one_image_is_enough(tmp_path: Path) -> None:
    model = SMALL["mlp"](batch=1)
    graph, network, _ = searched(model)
    require_repeatable(graph, written(model, tmp_path), dataset_of(images(network.input_shape, 1)))


def test_what_normalisation_changes_is_noticed(tmp_path: Path) -> None:
    other = SMALL["mlp"](seed=1)
    of = small("mlp")
    with pytest.raises(ModelError, match="normal form gives other scores"):
        require_repeatable(of.graph, written(other, tmp_path), of.dataset)


def test_random_numbers_that_no_list_knows(tmp_path: Path) -> None:
    b = Builder()
    y = b.op("Sigmoid", [b.gemm("x", "one", 12, 8)], "half")
    y = b.op("Add", [y, b.op("RandomNormalLike", [y], "noise")], "sum")
    model = b.model(b.gemm(y, "two", 8, 4), (12,), (4,))
    told = complaint(model, tmp_path)
    assert "run again" in told
    assert "RandomNormalLike 'noise' is the first node to differ" in told


def test_rounding_of_sums_is_no_difference() -> None:
    scores = images((5,), 8)
    nudged = scores * np.float32(1 + 1e-6)
    # one image whose index jumped
    nudged[0] += 1
    assert not _differ(_gaps(scores, nudged, float(scores.std())))
    assert _differ(_gaps(scores, nudged + np.float32(0.1), float(scores.std())))


def test_analyze_and_its_dry_run_ask_before_any_work(tmp_path: Path) -> None:
    model = written(across_the_batch("softmax", None), tmp_path)
    np.savez(tmp_path / "data.npz", x=images((12,), 32))
    for call in (analyze, plan):
        with pytest.raises(ModelError, match="looks at the other images"):
            call(model, tmp_path / "data.npz", **({**QUICK, "output": tmp_path / "a"} if call is analyze else {}))
    assert not (tmp_path / "a").exists()
