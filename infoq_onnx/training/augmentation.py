"""Random changes of training images, by torchvision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from infoq_onnx.errors import MissingDependencyError, setting

Augment = Callable[[Tensor], Tensor]

_SMALL = 64
"""Images of at most this size are shifted; of larger ones, a part is enlarged."""
_LEAST_AREA = 0.5
"""Smallest share of a larger image that is enlarged. A teacher sees the same part, so no label may become wrong."""


def augmentation(name: str, layout: str | None) -> Augment | None:
    """Return a function that changes a batch of images at random.

    Parameters
    ----------
    name : "flip-crop": flip left and right, and shift small images or enlarge a part of larger ones; "crop": without
        flipping, for images such as digits; "none"
    layout : "NCHW" or "NHWC"; None: the samples are no images, and stay as they are

    Returns
    -------
    callable or None
        Draws from torch's global generator, for each image anew.

    Raises
    ------
    MissingDependencyError
        torchvision is missing, or does not fit the installed torch.
    """
    if name == "none" or layout is None:
        return None
    try:
        from torchvision.transforms import v2  # type: ignore[import-untyped,unused-ignore]
    except (ImportError, RuntimeError) as error:
        raise MissingDependencyError(
            f"{setting('augment')} {name} needs a torchvision that fits the installed torch ({error}); install both "
            f"with pip install 'infoq-onnx[finetune]', or give {setting('augment')} none"
        ) from error

    def changed(images: Tensor) -> Tensor:
        planes = images.permute(0, 3, 1, 2) if layout == "NHWC" else images
        size = (int(planes.shape[2]), int(planes.shape[3]))
        steps: list[Any] = [v2.RandomHorizontalFlip()] if name == "flip-crop" else []
        if max(size) <= _SMALL:
            steps.append(v2.RandomCrop(size, padding=max(1, max(size) // 8), padding_mode="reflect"))
        else:
            steps.append(v2.RandomResizedCrop(size, scale=(_LEAST_AREA, 1.0), antialias=True))
        change = v2.Compose(steps)
        found = torch.stack([change(image) for image in planes])
        return found.permute(0, 2, 3, 1) if layout == "NHWC" else found

    return changed
