"""The student starts as the emitted model, and what it has learned comes back to ONNX."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from infoq_onnx.emit.qdq import qdq_model  # noqa: E402
from infoq_onnx.emit.storage import STORAGES  # noqa: E402
from infoq_onnx.graph.session import open_session  # noqa: E402
from infoq_onnx.schema import Bits  # noqa: E402
from infoq_onnx.simulate.rounding.sequential import round_sequential  # noqa: E402
from infoq_onnx.simulate.simulation import LayerCodes, layer_codes, simulation  # noqa: E402
from infoq_onnx.training.learned import Learned, values  # noqa: E402
from infoq_onnx.training.student import Student  # noqa: E402
from tests.networks import SMALL  # noqa: E402
from tests.prepared import Ready, images, small, spread_of  # noqa: E402


def logits_of(ready: Ready, student: Student) -> np.ndarray:
    with torch.no_grad():
        return student(torch.from_numpy(images(ready.network.input_shape, ready.graph.batch or 8))).numpy()


def simulated(ready: Ready, bits: Bits, codes: dict[str, LayerCodes], of: object = None) -> np.ndarray:
    model = simulation(of or ready.quantizable, bits, codes=codes)
    given = {ready.graph.input: images(ready.network.input_shape, ready.graph.batch or 8)}
    return open_session(model, optimize=False).run([ready.graph.output], given)[0]


def changed(student: Student, size: float, seed: int = 0) -> None:
    """Change everything that learns."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in student.parameters():
            if one.requires_grad:
                one.add_(size * torch.randn(one.shape, generator=random))
    student.limit()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("mode", ["scales", "lsq"])
def test_step_0_computes_what_the_emitted_model_computes(name: str, mode: str) -> None:
    ready = small(name)
    for bits in (ready.uniform(8, 8), ready.uniform(3, 4), ready.mixed(1)):
        codes = layer_codes(ready.quantizable, bits)
        student = Student(ready.quantizable, bits, codes, mode)
        expected = simulated(ready, bits, codes)
        assert spread_of(logits_of(ready, student) - expected, expected) < 1e-3
        exported = student.export()
        assert exported.of.grids.activations == ready.table.activations
        for layer, held in codes.items():
            found = exported.codes[layer]
            np.testing.assert_array_equal(found.weight, held.weight)
            np.testing.assert_array_equal(found.scales, held.scales)
            if held.bias is not None:
                np.testing.assert_array_equal(found.bias, held.bias)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("mode", ["scales", "lsq"])
def test_what_was_learned_is_exported(name: str, mode: str) -> None:
    ready = small(name)
    bits = ready.mixed(2)
    codes = layer_codes(ready.quantizable, bits)
    student = Student(ready.quantizable, bits, codes, mode)
    changed(student, 0.02)
    exported = student.export()
    expected = simulated(ready, bits, exported.codes, exported.of)
    assert spread_of(logits_of(ready, student) - expected, expected) < 1e-3
    assert spread_of(expected - simulated(ready, bits, codes), expected) > 1e-3
    moved = any((exported.codes[layer].weight != held.weight).any() for layer, held in codes.items())
    assert moved == (mode == "lsq")
    # convolutions stay integer kernels: the quantizers still do the clipping of what was fused
    emitted = qdq_model(exported.of, bits, exported.codes, STORAGES["int8"], {})
    before = qdq_model(ready.quantizable, bits, codes, STORAGES["int8"], {})
    assert [node.op_type for node in emitted.graph.node] == [node.op_type for node in before.graph.node]


def test_placed_levels() -> None:
    """Weights that gptq placed on levels of their own stay on them."""
    ready = small("residual")
    bits = ready.uniform(2, 8)
    codes = round_sequential(ready.quantizable, bits, ready.dataset, lambda *_: None)
    assert any(held.rounded.origins is not None for held in codes.values())
    student = Student(ready.quantizable, bits, codes, "lsq")
    expected = simulated(ready, bits, codes)
    assert spread_of(logits_of(ready, student) - expected, expected) < 1e-3
    changed(student, 0.5)
    for name, held in student.export().codes.items():
        origins = codes[name].rounded.origins
        if origins is not None:
            levels = origins[:, None] + 2 * np.arange(4)
            rows = held.weight.reshape(len(origins), -1)
            assert all(set(row) <= set(allowed) for row, allowed in zip(rows, levels, strict=True))


def test_everything_that_learns_has_a_gradient() -> None:
    ready = small("attention")
    bits = ready.uniform(4, 4)
    student = Student(ready.quantizable, bits, layer_codes(ready.quantizable, bits), "lsq")
    student(torch.from_numpy(images(ready.network.input_shape, 8))).square().sum().backward()
    kinds = dict(student.groups())
    assert set(kinds) == {"weights", "steps", "biases"}
    assert student.affine
    listed = [id(one) for parameters in kinds.values() for one in parameters]
    learning = [one for one in student.parameters() if one.requires_grad]
    assert sorted(listed) == sorted(map(id, learning))
    assert all(one.grad is not None for one in learning)


def test_learned_values_are_limited() -> None:
    one = values(torch.tensor([1.0, -2.0]), 1e-3, trained=True)
    with torch.no_grad():
        one.change.fill_(10.0)
    one.limit(-3.0, 3.0)
    torch.testing.assert_close(one(), torch.tensor([3.0, 3.0]))
    fixed = Learned(torch.tensor(1.0), torch.tensor(1.0), trained=False)
    fixed.limit(2.0)
    assert float(fixed()) == 1.0


def test_the_graph_stays() -> None:
    """Training changes no constant of the graph that it began with."""
    ready = small("residual")
    before = ready.graph.model.SerializeToString()
    bits = ready.uniform(4, 4)
    student = Student(ready.quantizable, bits, layer_codes(ready.quantizable, bits), "lsq")
    changed(student, 0.1)
    student.export()
    assert ready.graph.model.SerializeToString() == before
