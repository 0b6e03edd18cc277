"""Resizing batches of float images, exactly and without a dependency: one small matrix an axis."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def resize(images: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]:
    """Resize float32 [N, C, H, W] to [N, C, height, width], the axes on their own.

    Each axis is area-averaged where it shrinks, linearly interpolated where it grows, and left alone where it fits.
    """
    if images.shape[3] != width:
        images = images @ _weights(images.shape[3], width).T
    if images.shape[2] != height:
        images = _weights(images.shape[2], height) @ images
    return np.ascontiguousarray(images)


def _weights(source: int, target: int) -> npt.NDArray[np.float32]:
    """Weights [target, source] of the source's pixels in the target's; every row sums to 1."""
    return (_area(source, target) if target < source else _linear(source, target)).astype(np.float32)


def _area(source: int, target: int) -> npt.NDArray[np.float64]:
    """Share of each target pixel's extent that each source pixel covers."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    overlap = np.maximum(overlap, 0.0)
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True))


def _linear(source: int, target: int) -> npt.NDArray[np.float64]:
    """Linear interpolation between pixel centres, clamped at the borders (half-pixel coordinates)."""
    centres = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    return np.asarray(np.maximum(0.0, 1.0 - np.abs(centres[:, None] - np.arange(source))))
