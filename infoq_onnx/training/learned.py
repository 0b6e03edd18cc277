"""Values that are learned: each is its start plus a change, measured in multiples of the value's own magnitude.

The start is exact, so that an untrained network computes what the emitted file computes. As changes are relative, one
learning rate fits steps of 0.001 and weights of 100. Weight decay pulls values towards their start, not towards 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Learned(torch.nn.Module):
    """A tensor that may be trained.

    Parameters
    ----------
    start : the value before training
    magnitude : size of a relative change of 1, broadcasting against `start`
    trained : whether it learns
    """

    start: Tensor
    magnitude: Tensor

    def __init__(self, start: Tensor, magnitude: Tensor, *, trained: bool) -> None:
        super().__init__()
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("magnitude", magnitude, persistent=False)
        self.change = torch.nn.Parameter(torch.zeros_like(start)) if trained else None

    def forward(self) -> Tensor:
        """Return the value."""
        return self.start if self.change is None else self.start + self.magnitude * self.change

    @torch.no_grad()
    def limit(self, low: Tensor | float, high: Tensor | float = torch.inf) -> None:
        """Move the value into [low, high]."""
        if self.change is not None:
            smallest = (torch.as_tensor(low) - self.start) / self.magnitude
            largest = (torch.as_tensor(high) - self.start) / self.magnitude
            self.change.copy_(torch.clamp(self.change, smallest, largest))


def step(start: Tensor, *, trained: bool) -> Learned:
    """Return a learned step size; its changes are shares of the start."""
    return Learned(start, start.abs(), trained=trained)


def values(start: Tensor, least: float, *, trained: bool) -> Learned:
    """Return learned values; changes are in multiples of their root mean square, or of `least` if that is larger."""
    rms = start.double().square().mean().sqrt().to(start.dtype)
    return Learned(start, torch.clamp(rms, min=least), trained=trained)
