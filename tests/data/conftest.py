"""Small image sets made with Pillow, and what becomes of an image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from infoq_onnx.data.image_decoding import crop
from infoq_onnx.data.preprocess import normalise
from infoq_onnx.schema import Preprocessing

ImageSet = Callable[..., Path]


def apply(image: Image.Image, preprocessing: Preprocessing, input_shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Turn one image into the model's input."""
    return normalise(crop(image, preprocessing, input_shape)[None], preprocessing)[0]


@pytest.fixture
def image_set(tmp_path: Path) -> ImageSet:
    """Write images of noise: image_set("a/1.png", "b/2.png", size=(8, 6)) returns the folder they are in."""

    def write(*names: str, size: tuple[int, int] = (8, 8), folder: str = "images", seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
        return root

    return write
