"""Networks run in torch compute what onnxruntime computes, and are differentiable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from infoq_onnx.errors import ModelError  # noqa: E402
from infoq_onnx.graph.graph import Graph  # noqa: E402
from infoq_onnx.graph.normalize import normalize  # noqa: E402
from infoq_onnx.graph.session import open_session  # noqa: E402
from infoq_onnx.preparation import prepare  # noqa: E402
from infoq_onnx.torch_graph.graph_module import GraphModule, escaped  # noqa: E402
from tests.architectures import ARCHITECTURES  # noqa: E402
from tests.networks import SMALL, mlp, residual_convnet  # noqa: E402
from tests.prepared import images, is_one_line  # noqa: E402


def graph_of(model: onnx.ModelProto) -> Graph:
    return Graph(normalize(model))


def difference(graph: Graph) -> float:
    """Largest difference of a logit between torch and onnxruntime, as a share of the logits' range."""
    shape = tuple(dim.dim_value for dim in graph.model.graph.input[0].type.tensor_type.shape.dim[1:])
    values = images(shape, graph.batch or 3)
    expected = open_session(graph.model, optimize=False).run([graph.output], {graph.input: values})[0]
    with torch.no_grad():
        found = GraphModule(graph)(torch.from_numpy(values)).numpy()
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / (expected.max() - expected.min()))


@pytest.mark.parametrize("name", SMALL)
def test_small_networks(name: str) -> None:
    assert difference(graph_of(SMALL[name]())) < 1e-4


@pytest.mark.parametrize("batch", [None, 1])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name: str, batch: int | None) -> None:
    assert difference(graph_of(ARCHITECTURES[name](batch))) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10_resnet20_dynamo", "mobilenetv1_025", "squeezenet1_1", "vit_tiny"])
def test_real_models(name: str, shared: Path) -> None:
    assert difference(prepare(shared / "models" / f"{name}.onnx").graph) < 1e-4


def test_gradients() -> None:
    """Of every constant, by finite differences in float64."""
    module = GraphModule(graph_of(mlp())).double()
    values = torch.from_numpy(images((12,), 4)).double()
    for name, parameter in module.constants.items():
        parameter.requires_grad_(True)
        module(values).square().sum().backward()
        position = (0,) * parameter.dim()
        step = 1e-6
        sums = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[position] += sign * step
                sums.append(float(module(values).square().sum()))
                parameter[position] -= sign * step
        numeric = (sums[0] - sums[1]) / (2 * step)
        assert float(parameter.grad[position]) == pytest.approx(numeric, rel=1e-5, abs=1e-8), name
        parameter.requires_grad_(False)


def test_a_part_of_the_graph() -> None:
    graph = graph_of(residual_convnet())
    module = GraphModule(graph)
    shape = tuple(dim.dim_value for dim in graph.model.graph.input[0].type.tensor_type.shape.dim[1:])
    values = torch.from_numpy(images(shape, 2))
    inner = graph.nodes[len(graph.nodes) // 2].output[0]
    given = module.values({graph.input: values}, [inner])
    reads_more = module.values({graph.input: values, **given}, [graph.output])[graph.output]
    torch.testing.assert_close(reads_more, module(values), rtol=0, atol=0)


def test_a_given_constant_replaces_the_networks() -> None:
    graph = graph_of(mlp())
    module = GraphModule(graph)
    values = torch.from_numpy(images((12,), 2))
    last = graph.producer[graph.output].input[1]
    assert not module(values, {last: torch.zeros_like(module.parameter(last))}).std(dim=0).any()


def test_names_with_dots() -> None:
    assert escaped("layer1.0%.weight") == ":layer1%2E0%25%2Eweight"
    assert escaped("a.b") != escaped("a%2Eb")


def test_an_operator_that_is_not_there_is_named() -> None:
    graph = graph_of(mlp())
    graph.nodes[0].op_type = "NonMaxSuppression"
    with pytest.raises(ModelError) as error:
        GraphModule(graph)
    assert is_one_line(error.value, "NonMaxSuppression")


def test_any_number_of_images_through_a_fixed_batch() -> None:
    graph = graph_of(SMALL["fixed batch"]())
    size = graph.batch
    assert size is not None
    shape = tuple(dim.dim_value for dim in graph.model.graph.input[0].type.tensor_type.shape.dim[1:])
    values = images(shape, 2 * size)
    session = open_session(graph.model, optimize=False)
    expected = np.concatenate(
        [session.run([graph.output], {graph.input: part})[0] for part in (values[:size], values[size:])]
    )
    module = GraphModule(graph, batch=size)
    for count in (1, size, size + 1, 2 * size):
        with torch.no_grad():
            found = module(torch.from_numpy(values[:count])).numpy()
        np.testing.assert_allclose(found, expected[:count], rtol=1e-4, atol=1e-5)
