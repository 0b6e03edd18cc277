"""Resize batches of float images, with one small matrix per axis."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def resize(images: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]:
    """Resize images, each axis separately.

    An axis that shrinks is area-averaged, an axis that grows is linearly interpolated, and any other is left unchanged.

    Parameters
    ----------
    images : ndarray of float32, [N, C, H, W]
    height, width
        The new size in pixels.

    Returns
    -------
    images : ndarray of float32, [N, C, height, width], contiguous
    """
    if images.shape[3] != width:
        images = images @ _weights(images.shape[3], width).T
    if images.shape[2] != height:
        images = _weights(images.shape[2], height) @ images
    return np.ascontiguousarray(images)


def _weights(source: int, target: int) -> npt.NDArray[np.float32]:
    """Return the weights [target, source] of the source pixels in each target pixel; every row sums to 1."""
    return (_area(source, target) if target < source else _linear(source, target)).astype(np.float32)


def _area(source: int, target: int) -> npt.NDArray[np.float64]:
    """Return the share of each target pixel that each source pixel covers."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    overlap = np.maximum(overlap, 0.0)
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True))


def _linear(source: int, target: int) -> npt.NDArray[np.float64]:
    """Return the weights of linear interpolation in half-pixel coordinates, clamped at the borders."""
    centres = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    return np.asarray(np.maximum(0.0, 1.0 - np.abs(centres[:, None] - np.arange(source))))
