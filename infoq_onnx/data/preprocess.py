"""How an image becomes a tensor: recipes by name, and (value / scale − mean) / std.

The conversion has two steps, to save memory: `image_decoding.crop` returns uint8 pixels of the model's size, which are
small enough to be kept, and `normalise` converts a batch of these pixels to float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from infoq_onnx.errors import SettingsError, setting
from infoq_onnx.schema import Preprocessing

Color = Literal["RGB", "BGR", "L"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

AS_IS = Preprocessing("array", None, False, 1.0, (0.0,), (1.0,), "RGB", "NCHW")
"""Represents no preprocessing: the samples are arrays that the model takes unchanged."""

UNCHANGED = "none"
"""Name of the preset that keeps pixels as they are."""

# the usual evaluation resizes images to 256 pixels for a model of 224 pixels
_MARGIN = 256 / 224


def is_image(input_shape: tuple[int, ...]) -> bool:
    """Return whether an input shape, [C, H, W] or [H, W, C], is that of an image: three axes, 1 or 3 channels."""
    return len(input_shape) == 3 and (input_shape[0] in (1, 3) or input_shape[2] in (1, 3))


def layout_of(input_shape: tuple[int, ...]) -> Literal["NCHW", "NHWC"]:
    """Return NCHW if the first axis of an image shape has size 1 or 3, else NHWC."""
    return "NCHW" if input_shape[0] in (1, 3) else "NHWC"


def image_size(input_shape: tuple[int, ...], layout: Literal["NCHW", "NHWC"]) -> tuple[int, int, int]:
    """Return the height, width and number of channels of an input shape, [C, H, W] or [H, W, C]."""
    if layout == "NCHW":
        channels, height, width = input_shape
    else:
        height, width, channels = input_shape
    return height, width, channels


def preset(name: str, input_shape: tuple[int, ...]) -> Preprocessing:
    """Return a named preprocessing, adapted to a model's input shape.

    Parameters
    ----------
    name
        A key of `PRESETS`.
    input_shape
        Shape of one image, [C, H, W] or [H, W, C].

    Returns
    -------
    Preprocessing

    Raises
    ------
    SettingsError
        There is no such preset, or the input is not an image.
    """
    if name not in PRESETS:
        raise SettingsError(f"unknown preprocessing {name!r}: choose {', '.join(PRESETS)}")
    return PRESETS[name](input_shape)


def custom(
    input_shape: tuple[int, ...],
    *,
    resize: int | None = None,
    crop: bool = True,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    scale: float = 255.0,
    color: Color | None = None,
    layout: Literal["NCHW", "NHWC"] | None = None,
    name: str = "custom",
) -> Preprocessing:
    """Return a preprocessing with all settings given explicitly.

    Parameters
    ----------
    input_shape
        Shape of one image, [C, H, W] or [H, W, C].
    resize
        Size in pixels of the image's short side before the crop. (In general, the image is resized to cover the model's
        input size, enlarged so that its short side is `resize`.) None never resizes.
    crop
        Crop the centre of the resized image. False resizes directly to the model's size, without keeping the aspect
        ratio.
    mean, std
        One value, or one value per channel in the tensor's channel order.
    scale
        Divisor of the pixel values, applied before `mean` and `std`.
    color
        Channel order; by default RGB for three channels and L for one.
    layout
        Position of the channels; by default that of the size 1 or 3 in `input_shape`.
    name
        Name of the preprocessing in reports.

    Returns
    -------
    Preprocessing

    Raises
    ------
    SettingsError
        A value is out of range or does not fit `input_shape`.
    """
    _require_image(input_shape, "options of preprocessing")
    layout = layout or layout_of(input_shape)
    height, width, channels = image_size(input_shape, layout)
    color = color or ("L" if channels == 1 else "RGB")
    if channels != (1 if color == "L" else 3):
        raise SettingsError(
            f"{setting('color')} {color} with {setting('layout')} {layout} does not fit the model's input "
            f"{'×'.join(map(str, input_shape))}; give those that do"
        )
    if resize is not None and resize < 1:
        raise SettingsError(f"{setting('resize')} {resize}: give 1 pixel or more")
    if resize is not None and crop and resize < min(height, width):
        raise SettingsError(f"{setting('resize')} {resize} is too small for a crop of {height}×{width}: give more")
    if not (math.isfinite(scale) and scale > 0):
        raise SettingsError(f"{setting('scale')} {scale}: give a finite number above 0")
    for what, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise SettingsError(
                f"{setting(what)} has {len(values)} values: give 1, or {channels} for the model's channels"
            )
        if not all(map(math.isfinite, values)) or (what == "std" and min(values) <= 0):
            told = "finite numbers above 0" if what == "std" else "finite numbers"
            raise SettingsError(f"{setting(what)} {','.join(map(str, values))}: give {told}")
    return Preprocessing(
        name=name,
        resize=resize,
        crop=crop,
        scale=float(scale),
        mean=_each(mean, channels),
        std=_each(std, channels),
        color=color,
        layout=layout,
    )


def check_fits(preprocessing: Preprocessing, input_shape: tuple[int, ...]) -> None:
    """Check that a preprocessing fits an input shape.

    Parameters
    ----------
    preprocessing
        The preprocessing to check.
    input_shape
        Shape of one image, [C, H, W] or [H, W, C].

    Raises
    ------
    SettingsError
        The number of channels differs, the images are resized to less than the crop, or the input is not an image.
    """
    _require_image(input_shape, setting("preprocessing"))
    custom(
        input_shape,
        resize=preprocessing.resize,
        crop=preprocessing.crop,
        mean=preprocessing.mean,
        std=preprocessing.std,
        scale=preprocessing.scale,
        color=preprocessing.color,
        layout=preprocessing.layout,
    )


def normalise(pixels: npt.NDArray[np.uint8], preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """Compute (pixels / scale − mean) / std in float32.

    Parameters
    ----------
    pixels : ndarray of uint8, [N, H, W, C]
    preprocessing : scale, mean, std and layout

    Returns
    -------
    tensors : ndarray of float32, [N, C, H, W] or [N, H, W, C], contiguous
    """
    axes = (0, 3, 1, 2) if preprocessing.layout == "NCHW" else (0, 1, 2, 3)
    shape = (-1, 1, 1) if preprocessing.layout == "NCHW" else (-1,)
    tensors = np.ascontiguousarray(pixels.transpose(axes), dtype=np.float32)
    tensors /= np.float32(preprocessing.scale)
    tensors -= np.array(preprocessing.mean, np.float32).reshape(shape)
    tensors /= np.array(preprocessing.std, np.float32).reshape(shape)
    return tensors


def _require_image(input_shape: tuple[int, ...], given: str) -> None:
    if not is_image(input_shape):
        raise SettingsError(
            f"the model's input has the shape {input_shape} and is not an image: give arrays (.npy, .npz) of that "
            f"shape, without {given}"
        )


def _each(values: Sequence[float], channels: int) -> tuple[float, ...]:
    return tuple(float(value) for value in (values if len(values) == channels else [values[0]] * channels))


# -------------------------------------------------------------------------------------------------------------- presets


def _preset(
    name: str, input_shape: tuple[int, ...], margin: float, scale: float, mean: Sequence[float], std: Sequence[float]
) -> Preprocessing:
    _require_image(input_shape, setting("preprocessing"))
    height, width, channels = image_size(input_shape, layout_of(input_shape))
    if channels == 1:
        mean, std = [sum(mean) / len(mean)], [sum(std) / len(std)]
    return custom(input_shape, resize=round(min(height, width) * margin), mean=mean, std=std, scale=scale, name=name)


def _imagenet(input_shape: tuple[int, ...]) -> Preprocessing:
    return _preset("imagenet", input_shape, _MARGIN, 255.0, IMAGENET_MEAN, IMAGENET_STD)


def _tf(input_shape: tuple[int, ...]) -> Preprocessing:
    return _preset("tf", input_shape, _MARGIN, 127.5, (1.0,), (1.0,))


def _cifar10(input_shape: tuple[int, ...]) -> Preprocessing:
    return _preset("cifar10", input_shape, 1.0, 255.0, CIFAR10_MEAN, CIFAR10_STD)


def _none(input_shape: tuple[int, ...]) -> Preprocessing:
    return _preset(UNCHANGED, input_shape, 1.0, 1.0, (0.0,), (1.0,))


PRESETS: dict[str, Callable[[tuple[int, ...]], Preprocessing]] = {
    "imagenet": _imagenet,
    "tf": _tf,
    "cifar10": _cifar10,
    UNCHANGED: _none,
}
"""imagenet: ImageNet mean and std; tf: x/127.5 − 1; cifar10: CIFAR-10 mean and std; none: raw 0 … 255."""
