"""Decode image files: read the file, apply its EXIF orientation, convert colours, and resize and crop to a size."""

from __future__ import annotations

import hashlib
import io
import math
import os
import struct
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from infoq_onnx.data.preprocess import image_size
from infoq_onnx.errors import setting
from infoq_onnx.schema import Preprocessing

# without EPS and similar formats, which Pillow passes to external programs
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "PPM", "TIFF")
# exceptions of Pillow's decoders for broken files; its warnings are turned into errors, except deprecation warnings
_WARNINGS = (UserWarning, RuntimeWarning)
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    *_WARNINGS,
)
_THREADS = min(8, os.cpu_count() or 1)
# several images are resized at the same time, and a very narrow image could grow to gigabytes
_MOST_PIXELS = 1 << 26


class WrongSizeError(ValueError):
    """An image cannot be brought to the model's size."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}: {remedy}")
        self.reason, self.remedy = reason, remedy


class Skipped(NamedTuple):
    """A selected image that cannot be read."""

    path: str
    reason: str
    remedy: str = "remove or replace them"


class Decoded(NamedTuple):
    """An image that was read."""

    pixels: npt.NDArray[np.uint8]
    """[H, W, C], of the model's size."""
    digest: bytes
    """SHA-256 of the file."""


def decode(
    files: Sequence[Path], preprocessing: Preprocessing, input_shape: tuple[int, ...]
) -> list[Decoded | Skipped]:
    """Decode image files in several threads.

    Parameters
    ----------
    files : the images
    preprocessing, input_shape : see `crop`

    Returns
    -------
    list of Decoded or Skipped
        In the order of the files.
    """
    # warning filters are global to the process: set them here once, because setting them in the threads would race
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        for category in _WARNINGS:
            warnings.simplefilter("error", category)
        return list(pool.map(lambda file: _decoded(file, preprocessing, input_shape), files))


def _decoded(file: Path, preprocessing: Preprocessing, input_shape: tuple[int, ...]) -> Decoded | Skipped:
    # opening a pipe would block forever
    if not os.path.isfile(file):
        return Skipped(str(file), "no such file")
    try:
        content = file.read_bytes()
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            pixels = crop(image, preprocessing, input_shape)
    except UnidentifiedImageError:
        return Skipped(str(file), "not an image")
    except WrongSizeError as error:
        return Skipped(str(file), error.reason, error.remedy)
    except _UNREADABLE as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()).rstrip(".") or type(error).__name__
        return Skipped(str(file), reason)
    return Decoded(pixels, hashlib.sha256(content).digest())


def crop(image: Image.Image, preprocessing: Preprocessing, input_shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Convert an image to the model's size and colours.

    Resizing is bilinear with antialiasing. With a centre crop, it keeps the aspect ratio: the resized image just covers
    the model's input size enlarged so that its short side is `preprocessing.resize`. Sizes and offsets are rounded as
    in torchvision's Resize and CenterCrop.

    Parameters
    ----------
    image
        The image, in any mode except float pixels.
    preprocessing
        Size, crop and colours.
    input_shape
        Shape of one image, [C, H, W] or [H, W, C].

    Returns
    -------
    pixels : ndarray of uint8, [H, W, C]

    Raises
    ------
    WrongSizeError
        The image has the wrong size and may not be resized, or would become too large before the crop.
    ValueError
        The image has float pixels.
    """
    height, width, channels = image_size(input_shape, preprocessing.layout)
    image = _in_color(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
    if image.size != (width, height):
        if preprocessing.resize is not None:
            target = (
                _cover(image.size, (width, height), preprocessing.resize) if preprocessing.crop else (width, height)
            )
            if math.prod(target) > _MOST_PIXELS:
                raise WrongSizeError(
                    f"{image.width}×{image.height} pixels would become {target[0]}×{target[1]}, too much for memory",
                    f"give a smaller {setting('resize')}",
                )
            image = image.resize(target, Image.Resampling.BILINEAR)
        if preprocessing.crop and image.width >= width and image.height >= height:
            left, top = round((image.width - width) / 2), round((image.height - height) / 2)
            image = image.crop((left, top, left + width, top + height))
        if image.size != (width, height):
            raise WrongSizeError(
                f"{image.width}×{image.height} pixels, the model takes {width}×{height}",
                f"resize them with {setting('resize')} {min(width, height)}, or replace them",
            )
    pixels = np.asarray(image, np.uint8).reshape(height, width, channels)
    return pixels[:, :, ::-1] if preprocessing.color == "BGR" else pixels


def _in_color(image: Image.Image, mode: Literal["RGB", "L"]) -> Image.Image:
    if image.mode == "F":
        raise ValueError("float pixels have no agreed range: save the image with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey values at 255 instead of scaling them
        grey: npt.NDArray[Any] = np.clip(np.asarray(image, np.int64), 0, 65535) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    # transparent palette entries keep their colour; Pillow would warn if it had to drop the transparency itself
    image.info.pop("transparency", None)
    return image.convert(mode)


def _cover(size: tuple[int, int], model: tuple[int, int], resize: int) -> tuple[int, int]:
    """Return the size (width, height) to which an image of `size` is resized before the crop.

    The resized image just covers a box: the `model` size, scaled so that its short side is `resize`.
    """
    (width, height), short = size, min(model)
    box_width, box_height = round(model[0] * resize / short), round(model[1] * resize / short)
    if width * box_height <= height * box_width:
        return box_width, max(box_height, box_width * height // width)
    return max(box_width, box_height * width // height), box_height
