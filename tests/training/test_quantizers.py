"""Quantizers and their gradients against the formulas of LSQ and LSQ+, and against finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from infoq_onnx.quantize.grid import quantize_activation  # noqa: E402
from infoq_onnx.schema import Quantizer  # noqa: E402
from infoq_onnx.training.quantizers import (  # noqa: E402
    FakeQuantize,
    codes_of,
    gradient_scale,
    quantize_weight,
    scaled_gradient,
    straight_through,
)


def fake(x: list[float], step: float, zero_point: float, largest: int) -> tuple[torch.Tensor, ...]:
    values = torch.tensor(x, requires_grad=True)
    s, z = torch.tensor(step, requires_grad=True), torch.tensor(float(zero_point), requires_grad=True)
    return FakeQuantize.apply(values, s, z, largest), values, s, z


def test_values_are_those_of_the_grid() -> None:
    random = np.random.default_rng(0)
    values = random.normal(0, 3, 1000).astype(np.float32)
    for quantizer in (Quantizer(2, 0.7, 1), Quantizer(4, 0.11, 0), Quantizer(8, 0.03, 128)):
        codes = quantize_activation(values, quantizer).astype(np.float32)
        expected = (codes - quantizer.zero_point) * np.float32(quantizer.scale)
        found = fake(values.tolist(), quantizer.scale, quantizer.zero_point, (1 << quantizer.bits) - 1)[0]
        np.testing.assert_array_equal(found.detach().numpy(), expected)


def test_gradient_of_the_step() -> None:
    """LSQ, Eq. 3: round(x/s) − x/s inside, −Q_N below, Q_P above."""
    inside, below, above = 0.6, -9.0, 9.0
    for value, expected in ((inside, round(inside / 0.5 + 1e-9) - inside / 0.5), (below, -1.0), (above, 2.0)):
        y, _, step, _ = fake([value], 0.5, 1.0, 3)
        y.sum().backward()
        assert float(step.grad) == pytest.approx(expected, abs=1e-6)


def test_gradients_of_the_values_and_of_the_zero_point() -> None:
    """LSQ+, Eqs. 5 and 6: of values 1 inside and 0 outside; of the offset β = −s·z 0 inside and 1 outside."""
    y, x, _, zero = fake([0.2, -9.0, 9.0], 0.5, 1.0, 3)
    y.sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 0.0]
    assert float(zero.grad) == pytest.approx(2 * -0.5)


def test_gradient_of_the_step_by_finite_differences() -> None:
    """Outside the range the function is linear in s; inside, the straight-through part x/s has to be added."""
    x = torch.tensor([5.0, 7.0, -4.0], dtype=torch.float64)
    zero = torch.tensor(2.0, dtype=torch.float64)

    def total(step: float) -> float:
        return float(FakeQuantize.apply(x, torch.tensor(step, dtype=torch.float64), zero, 7).sum())

    step = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    FakeQuantize.apply(x, step, zero, 7).sum().backward()
    assert float(step.grad) == pytest.approx((total(0.3 + 1e-6) - total(0.3 - 1e-6)) / 2e-6, rel=1e-6)


def test_gradient_scale() -> None:
    """LSQ, Section 2.2: g = 1/√(N·Q_P)."""
    assert gradient_scale(100, 3) == pytest.approx(1 / math.sqrt(300))
    x = torch.tensor(2.0, requires_grad=True)
    y = scaled_gradient(x, 0.25)
    (3 * y).backward()
    assert (y.item(), x.grad.item()) == (2.0, 0.75)


def test_straight_through() -> None:
    x = torch.tensor([0.4, 1.6], requires_grad=True)
    y = straight_through(x, x.detach().round())
    (y * torch.tensor([2.0, 3.0])).sum().backward()
    assert y.tolist() == [0.0, 2.0]
    assert x.grad.tolist() == [2.0, 3.0]


@pytest.mark.parametrize(("origin", "spacing", "count"), [(-4, 1, 8), (-7, 2, 8), (-1, 2, 4), (0, 2, 4)])
def test_weights_are_rounded_to_the_nearest_level(origin: int, spacing: int, count: int) -> None:
    levels = origin + spacing * np.arange(count)
    values = np.linspace(-10, 10, 401) + 0.003
    steps, origins = torch.tensor([0.8]), torch.tensor([float(origin)])
    found = codes_of(torch.from_numpy(values).float(), steps, origins, spacing, count).numpy()
    expected = levels[np.abs(values[:, None] / 0.8 - levels).argmin(axis=1)]
    np.testing.assert_array_equal(found, expected)


def test_gradients_of_weights_and_their_steps() -> None:
    """The gradient of a step is code − w/s inside the range, and the outermost code outside."""
    latent = torch.tensor([0.9, -0.3, 50.0, -50.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    for index in range(4):
        latent.grad = step.grad = None
        quantize_weight(latent, step, torch.tensor(-4.0), 1, 8)[index].backward()
        value = float(latent[index].detach())
        inside = abs(value) < 2
        assert float(latent.grad[index]) == float(inside)
        code = min(max(round(value / 0.5), -4), 3)
        assert float(step.grad) == pytest.approx(code - (value / 0.5 if inside else 0), abs=1e-5)


@pytest.mark.parametrize("shape", [(3,), (70001,), (4, 5, 6, 7), (0,)])
def test_kernels_compute_what_torch_computes(shape: tuple[int, ...]) -> None:
    """In float64, the function uses torch's operations instead."""
    random = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(shape, generator=random)).requires_grad_()
    weights = torch.randn(shape, generator=random)
    found = []
    for dtype in (torch.float32, torch.float64):
        values = x.detach().to(dtype).requires_grad_()
        step = torch.tensor(0.25, dtype=dtype, requires_grad=True)
        zero = torch.tensor(3.0, dtype=dtype, requires_grad=True)
        y = FakeQuantize.apply(values.transpose(0, -1), step, zero, 15)
        (y * weights.to(dtype).transpose(0, -1)).sum().backward()
        found.append([one.detach().double() for one in (y, values.grad, step.grad, zero.grad)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
