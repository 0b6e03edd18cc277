from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from infoq_onnx.data.encoders.resample import resize


def images(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 3, height, width)).astype(np.float32)


def test_whole_blocks_are_averaged() -> None:
    x = images(24, 40)
    expected = x.reshape(2, 3, 8, 3, 10, 4).mean(axis=(3, 5))
    np.testing.assert_allclose(resize(x, 8, 10), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("source", "target"), [((30, 45), (30, 32)), ((50, 37), (32, 32)), ((7, 9), (5, 2))])
def test_parts_of_pixels_count_for_their_share(source: tuple[int, int], target: tuple[int, int]) -> None:
    x = images(*source)
    for image, small in zip(x[0], resize(x, *target)[0], strict=True):
        # on a grid fine enough for both sizes, shares are whole pixels
        tall = np.repeat(np.repeat(image, target[0], axis=0), target[1], axis=1)
        expected = tall.reshape(target[0], source[0], target[1], source[1]).mean(axis=(1, 3))
        np.testing.assert_allclose(small, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", [(16, 16), (24, 31), (9, 8)])
def test_growing_is_bilinear(target: tuple[int, int]) -> None:
    x = images(8, 8)
    large = resize(x, *target)
    for image, grown in zip(x[0], large[0], strict=True):
        expected = Image.fromarray(image).resize((target[1], target[0]), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(grown, np.asarray(expected), rtol=1e-4, atol=1e-5)


def test_the_same_size_changes_nothing() -> None:
    x = images(5, 6)
    np.testing.assert_array_equal(resize(x, 5, 6), x)
