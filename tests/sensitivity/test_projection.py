"""Projections inside the model against numpy, and their distribution against the uniform one on the sphere."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from infoq_onnx.graph.editing import expose
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.ort import run
from infoq_onnx.sensitivity.projection import BUCKETS, add_projections, projection_name
from tests.networks import Builder, residual_convnet
from tests.prepared import images, searched, small

SIZES = [7, BUCKETS, 2 * BUCKETS, 5000, 8191, 3 * 8191]
"""Short; the longest unfolded; folded; folded into a divisor; prime, hence padded; padded in three folds."""


def wide(size: int) -> Graph:
    """A network whose tensor `y` has that many values."""
    b = Builder()
    y = b.relu("x", "y")
    return searched(b.model(b.gemm(y, "fc", size, 3), (size,), (3,)))[0]


def constants(model: onnx.ModelProto) -> dict[str, npt.NDArray[np.float32]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def directions_of(model: onnx.ModelProto, tensor: str, size: int) -> npt.NDArray[np.float64]:
    """θ [size, m] as the module's docstring has it: θ_i = σ_i · g_(i mod D)."""
    found, name = constants(model), projection_name(tensor)
    gaussian = found[f"{name}/directions"].astype(np.float64)
    if f"{name}/signs" not in found:
        return gaussian
    signs = found[f"{name}/signs"].ravel()[:size]
    return signs[:, None] * gaussian[np.arange(size) % len(gaussian)]


@pytest.mark.parametrize("size", SIZES)
def test_equals_a_matrix_product(size: int) -> None:
    graph = wide(size)
    model = add_projections(graph.model, graph, ["y_out"], 5, seed=0)
    onnx.checker.check_model(model, full_check=True)
    x = images((size,), 4)
    found = run(model, {"x": x}, [projection_name("y_out")])[0]
    theta = directions_of(model, "y_out", size)
    assert theta.shape == (size, 5)
    np.testing.assert_allclose(found, np.maximum(x, 0) @ theta, atol=1e-4 * math.sqrt(size))
    # every value counts, with the same weight in total for every direction
    assert np.all(theta != 0)
    folds = np.square(theta).sum(axis=0)
    np.testing.assert_allclose(folds, np.full(5, folds[0]), rtol=0.2)


def test_feature_maps_are_flattened() -> None:
    of = small("residual")
    tensor = "a_relu_out"
    model = add_projections(of.graph.model, of.graph, [tensor], 6, seed=0)
    x = images((3, 16, 16), 3)
    values = run(expose(of.graph.model, [tensor]), {"x": x}, [tensor])[0].reshape(3, -1)
    found = run(model, {"x": x}, [projection_name(tensor)])[0]
    np.testing.assert_allclose(found, values @ directions_of(model, tensor, values.shape[1]), atol=1e-3)


@pytest.mark.parametrize("size", [6, 4098])
def test_directions_are_isotropic(size: int) -> None:
    """E (θᵀv)² = |v|²/d for every v: also for values that share a bucket, for they do not share a sign."""
    graph = wide(size)
    buckets = size if size <= BUCKETS else size // 2
    vectors = np.random.default_rng(0).standard_normal((size, 5))
    vectors[:, :3] = 0
    vectors[1, 0] = 1
    vectors[[0, buckets % size], 1] = 1
    vectors[[0, buckets % size], 2] = [1, -1] if size > BUCKETS else 1
    vectors /= np.linalg.norm(vectors, axis=0)
    squares = []
    for seed in range(150):
        theta = directions_of(add_projections(graph.model, graph, ["y_out"], 8, seed), "y_out", size)
        # folding scales a direction, which standardization takes back
        squares.append(np.square(theta.T @ vectors) * buckets)
    mean = np.concatenate(squares).mean(axis=0)
    # 1200 draws of a variable with variance of about 2
    np.testing.assert_allclose(mean, 1.0, atol=4 * math.sqrt(2 / 1200) * (2 if size > BUCKETS else 1))


def test_short_tensors_get_unit_directions() -> None:
    graph = wide(BUCKETS)
    theta = directions_of(add_projections(graph.model, graph, ["y_out"], 9, 0), "y_out", BUCKETS)
    np.testing.assert_allclose(np.linalg.norm(theta, axis=0), 1, rtol=1e-6)


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network as another exporter would name it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        node.name = f"other/{node.name}"
        node.input[:] = [f"t_{name}" if name else "" for name in node.input]
        node.output[:] = [f"t_{name}" for name in node.output]
    for value in (*copy.graph.input, *copy.graph.output, *copy.graph.initializer):
        value.name = f"t_{value.name}"
    return copy


def test_names_do_not_decide_the_directions() -> None:
    x = images((3, 16, 16), 3)
    tensors = ["stem_relu_out", "a_relu_out", "flatten_out"]
    results = []
    for model, prefix in ((residual_convnet(), ""), (renamed(residual_convnet()), "t_")):
        graph = searched(model)[0]
        observed = [prefix + tensor for tensor in tensors]
        projected = add_projections(graph.model, graph, observed, 4, seed=3)
        results.append(run(projected, {graph.input: x}, [projection_name(tensor) for tensor in observed]))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_seed_and_position_decide_the_directions() -> None:
    graph = small("mlp").graph
    same_size = ["relu1_out", "relu2_out"]

    def theta(tensors: list[str], tensor: str, seed: int) -> npt.NDArray[np.float64]:
        return directions_of(add_projections(graph.model, graph, tensors, 4, seed), tensor, 16)

    first = theta(same_size, "relu1_out", 0)
    np.testing.assert_array_equal(theta(same_size[:1], "relu1_out", 0), first)
    np.testing.assert_array_equal(theta(same_size[::-1], "relu2_out", 0), first)
    assert not np.allclose(theta(same_size, "relu2_out", 0), first)
    assert not np.allclose(theta(same_size, "relu1_out", 1), first)


@pytest.mark.parametrize("batch", [None, 4])
def test_outputs_are_added_and_the_model_is_not_changed(batch: int | None) -> None:
    graph = searched(residual_convnet(batch=batch))[0]
    before = graph.model.SerializeToString(deterministic=True)
    model = add_projections(graph.model, graph, ["a_relu_out", graph.output], 5, seed=0)
    assert graph.model.SerializeToString(deterministic=True) == before
    names = [projection_name("a_relu_out"), projection_name("logits")]
    assert [value.name for value in model.graph.output] == ["logits", *names]
    x = images((3, 16, 16), 4)
    logits, *projections = run(model, {"x": x})
    np.testing.assert_allclose(logits, run(graph.model, {"x": x})[0], atol=1e-5)
    assert [values.shape for values in projections] == [(4, 5), (4, 5)]
    # it can be looked at like any other graph
    assert set(names) <= Graph(model).batched
