"""Selected samples with their labels, which can be read in batches any number of times.

Every selected image is decoded once when the dataset is loaded, so that broken files are found before hours of work.
The pixels are kept in memory if they fit into the cache; otherwise the images are decoded again in every pass.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from infoq_onnx.data import preprocess
from infoq_onnx.data.choose import choose
from infoq_onnx.data.image_decoding import Skipped, crop, decode
from infoq_onnx.data.sources import Source, open_source, with_classes
from infoq_onnx.errors import DataError, SettingsError, setting
from infoq_onnx.schema import CalibrationRef, Preprocessing

CACHE_BYTES = 1 << 30
"""Pixels or arrays of at most this many bytes are kept in memory."""

TOLERATED_PERCENT = 1
"""Percentage of the selected images that may be unreadable."""

Positions = npt.NDArray[np.int64]

_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples of a source as input of a model, in a fixed order."""

    source: Source
    input_shape: tuple[int, ...]
    """Shape of one sample."""
    preprocessing: Preprocessing | None
    """Preprocessing of the images; None if the samples are arrays that are used unchanged."""
    indices: npt.NDArray[np.int64]
    """[N], positions of the samples in the source; in ascending order, except in a part."""
    labels: npt.NDArray[np.int64] | None
    """[N], class indices; None without labels."""
    sha256: str
    """Hex digest that covers the samples' raw bytes, their labels and their order."""
    skipped: tuple[Skipped, ...]
    """Selected images that are left out because they cannot be read."""
    _read: Callable[[Positions], npt.NDArray[Any]] = field(repr=False)
    """Read samples by position: uint8 pixels [n, H, W, C], or arrays [n, *input_shape] if not preprocessed."""

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.indices)

    @property
    def layout(self) -> Literal["NCHW", "NHWC"] | None:
        """Position of the channels in a batch; None if the samples are not images."""
        if self.preprocessing is not None:
            return self.preprocessing.layout
        return preprocess.layout_of(self.input_shape) if preprocess.is_image(self.input_shape) else None

    @property
    def kept_bytes(self) -> int:
        """Bytes of samples that are kept in memory; those of the whole dataset for a part of it."""
        read = self._read
        while isinstance(read, partial) and read.func is _of_part:
            read = read.args[0]
        return int(read.args[0].nbytes) if isinstance(read, partial) and read.func is _in_memory else 0

    def batches(self, size: int) -> Iterator[npt.NDArray[np.float32]]:
        """Yield batches of float32 [n, *input_shape], where n = `size` except in the last batch, which may be smaller.

        Raises
        ------
        DataError
            An image has been removed or changed since the dataset was loaded.
        SettingsError
            `size` is less than 1.
        """
        if size < 1:
            raise SettingsError(f"cannot read batches of {size} samples: give 1 or more")
        for start in range(0, len(self), size):
            values = self._read(np.arange(start, min(start + size, len(self))))
            if self.preprocessing is not None:
                yield preprocess.normalise(values, self.preprocessing)
            else:
                yield np.array(values, dtype=np.float32, order="C")

    def part(self, positions: Positions) -> Dataset:
        """Return the samples at some positions [n] of this dataset, in the given order."""
        labels = None if self.labels is None else self.labels[positions]
        read = partial(_of_part, self._read, positions)
        sha256 = _sha256([self.sha256.encode(), positions.astype("<i8").tobytes()], labels)
        indices = self.indices[positions]
        return dataclasses.replace(self, indices=indices, labels=labels, sha256=sha256, skipped=(), _read=read)

    def alone(self) -> Dataset:
        """Return a copy without the source's files, array and labels, to be sent to other processes."""
        return dataclasses.replace(self, source=dataclasses.replace(self.source, files=(), array=None, labels=None))

    def ref(self) -> CalibrationRef:
        """Describe the dataset for an analysis. Without labels, `labels` and `targets` are "predicted"."""
        return CalibrationRef(
            path=str(self.source.path),
            classes_path=str(self.source.classes_path) if self.source.classes_path is not None else None,
            sha256=self.sha256,
            samples=len(self),
            requested=len(self) + len(self.skipped),
            labels="true" if self.labels is not None else "predicted",
            targets="true" if self.labels is not None else "predicted",
            preprocessing=self.preprocessing or preprocess.AS_IS,
        )


def load_dataset(
    path: Path,
    *,
    classes: Path | None = None,
    preprocessing: Preprocessing | None,
    input_shape: tuple[int, ...],
    samples: int | None = None,
    seed: int = 0,
    without: npt.NDArray[np.int64] | None = None,
    n_classes: int | None = None,
    tolerated_percent: int = TOLERATED_PERCENT,
    cache_bytes: int = CACHE_BYTES,
) -> Dataset:
    """Open a source, select samples, and check that they can be read.

    Image files are preprocessed. So are integer arrays that hold images in RGB with values from 0 to 255 ([N, H, W, C],
    [N, C, H, W] or [N, H, W]). Float arrays are cast to float32 and must have the model's input shape.

    Parameters
    ----------
    path, classes
        See `open_source`.
    preprocessing
        Preprocessing of images; None uses integer arrays unchanged, too.
    input_shape
        Input shape of the model, for one sample.
    samples, seed, without
        See `choose`.
    n_classes
        Number of classes of the model, which the labels must match; None does not check the labels.
    tolerated_percent
        Percentage of the selected images that may be unreadable. At least one image must be readable in any case.
    cache_bytes
        The samples are kept in memory if they take at most this many bytes in total.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        The source cannot be used or does not fit the model, or too many of the selected images cannot be read.
    SettingsError
        `samples` or `seed` is out of range; or `preprocessing` is missing, does not fit the input shape, or is given
        for integers outside 0 to 255.
    """
    source = open_source(path, classes)
    if n_classes is not None:
        source = with_classes(source, n_classes)
    chosen = choose(source, samples, seed, without)
    if source.array is not None:
        return _of_array(source, source.array, chosen, preprocessing, input_shape, cache_bytes)
    if not preprocess.is_image(input_shape):
        raise DataError(
            f"{path} holds images but the model takes {input_shape}: give arrays (.npy, .npz) of that shape"
        )
    if preprocessing is None:
        presets = ", ".join(preprocess.PRESETS)
        raise SettingsError(
            f"{path} holds images: choose their preprocessing ({presets}) with {setting('preprocessing')}"
        )
    preprocess.check_fits(preprocessing, input_shape)
    return _of_images(source, chosen, preprocessing, input_shape, tolerated_percent, cache_bytes)


def _in_memory(values: npt.NDArray[Any], positions: Positions) -> npt.NDArray[Any]:
    return values[positions]


def _of_part(read: Callable[[Positions], npt.NDArray[Any]], part: Positions, positions: Positions) -> npt.NDArray[Any]:
    return read(part[positions])


# --------------------------------------------------------------------------------------------------------------- images


def _of_images(
    source: Source,
    chosen: npt.NDArray[np.int64],
    preprocessing: Preprocessing,
    input_shape: tuple[int, ...],
    tolerated_percent: int,
    cache_bytes: int,
) -> Dataset:
    files = [source.files[index] for index in chosen]
    shape = (len(files), *preprocess.image_size(input_shape, preprocessing.layout))
    pixels = np.empty(shape, np.uint8) if np.prod(shape, dtype=np.int64) <= cache_bytes else None
    kept: list[int] = []
    digests: list[bytes] = []
    skipped: list[Skipped] = []
    for start in range(0, len(files), _AT_ONCE):
        decoded = decode(files[start : start + _AT_ONCE], preprocessing, input_shape)
        for position, image in enumerate(decoded, start):
            if isinstance(image, Skipped):
                skipped.append(image)
                continue
            if pixels is not None:
                pixels[len(kept)] = image.pixels
            kept.append(position)
            digests.append(image.digest)
    if not kept or len(skipped) * 100 > len(files) * tolerated_percent:
        raise DataError(
            f"{len(skipped)} of {len(files)} images cannot be read (first: {skipped[0].path}): {skipped[0].reason}; "
            f"{skipped[0].remedy}"
        )
    if pixels is not None:
        read = partial(_in_memory, pixels[: len(kept)])
    else:
        # absolute paths, because another process that reads them may have another working directory
        again = [files[position].absolute() for position in kept]
        read = partial(_from_files, again, digests, preprocessing, input_shape)
    indices = chosen[kept]
    labels = source.labels[indices] if source.labels is not None else None
    return Dataset(source, input_shape, preprocessing, indices, labels, _sha256(digests, labels), tuple(skipped), read)


def _from_files(
    files: Sequence[Path],
    digests: Sequence[bytes],
    preprocessing: Preprocessing,
    input_shape: tuple[int, ...],
    positions: Positions,
) -> npt.NDArray[np.uint8]:
    pixels: list[npt.NDArray[np.uint8]] = []
    wanted = [files[position] for position in positions]
    for image, position in zip(decode(wanted, preprocessing, input_shape), positions, strict=True):
        if isinstance(image, Skipped):
            raise DataError(f"{image.path} could be read at first, and cannot now: {image.reason}; start again")
        if image.digest != digests[position]:
            raise DataError(f"{files[position]} has changed since it was first read: start again")
        pixels.append(image.pixels)
    return np.stack(pixels)


# --------------------------------------------------------------------------------------------------------------- arrays


def _of_array(
    source: Source,
    array: npt.NDArray[Any],
    chosen: npt.NDArray[np.int64],
    preprocessing: Preprocessing | None,
    input_shape: tuple[int, ...],
    cache_bytes: int,
) -> Dataset:
    read: Callable[[Positions], npt.NDArray[Any]] = partial(_from_array, array, chosen)
    labels = source.labels[chosen] if source.labels is not None else None
    header = f"{array.dtype.str} {array.shape[1:]}".encode()
    sha256 = _sha256(itertools.chain([header], _raw(source.path, read, chosen)), labels)

    shape = array.shape[1:]
    images = array.dtype.kind in "ui" and preprocess.is_image(input_shape) and _is_images(shape)
    if preprocessing is not None and images:
        preprocess.check_fits(preprocessing, input_shape)
        _check_pixels(source.path, array.dtype, read, len(chosen))
        read = partial(_from_image_array, array, chosen, preprocessing, input_shape)
        try:
            read(np.arange(1))
        except ValueError as error:
            raise DataError(f"{source.path} does not fit the model: {error}") from error
    elif shape == input_shape:
        preprocessing = None
    else:
        raise DataError(
            f"{source.path} holds samples of shape {shape} ({array.dtype}) but the model takes {input_shape}: give "
            "arrays of that shape"
        )
    size = math.prod(input_shape) * (array.itemsize if preprocessing is None else 1)
    if len(chosen) * size <= cache_bytes:
        read = partial(_in_memory, read(np.arange(len(chosen))))
    return Dataset(source, input_shape, preprocessing, chosen, labels, sha256, (), read)


def _is_images(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or preprocess.is_image(shape)


def _raw(
    path: Path, read: Callable[[Positions], npt.NDArray[Any]], chosen: npt.NDArray[np.int64]
) -> Iterator[memoryview]:
    """Yield the bytes of the chosen samples, and make sure that they are finite. All others are not even read."""
    seen = 0
    for values in map(np.ascontiguousarray, _parts(read, len(chosen))):
        if values.dtype.kind == "f":
            # checked in float32, the model's input type: a float64 value beyond its range becomes infinite
            with np.errstate(over="ignore"):
                finite = np.isfinite(values.astype(np.float32, copy=False))
            if not finite.all():
                bad = chosen[seen + int(np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))[0])]
                raise DataError(f"{path}: sample {bad} holds NaN, infinite or too large values: remove or mend it")
        seen += len(values)
        yield values.data


def _check_pixels(path: Path, dtype: np.dtype[Any], read: Callable[[Positions], npt.NDArray[Any]], count: int) -> None:
    if dtype == np.uint8:
        return
    ends = [(int(values.min()), int(values.max())) for values in _parts(read, count)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if low < 0 or high > 255:
        raise SettingsError(
            f"{path} holds {dtype} values from {low} to {high}, and only 0 to 255 can be preprocessed: save them "
            "as uint8, or as float32 if they are the model's input already"
        )


def _parts(read: Callable[[Positions], npt.NDArray[Any]], count: int) -> Iterator[npt.NDArray[Any]]:
    """Read `count` samples, some at a time."""
    return (read(np.arange(start, min(start + _AT_ONCE, count))) for start in range(0, count, _AT_ONCE))


def _from_array(array: npt.NDArray[Any], chosen: npt.NDArray[np.int64], positions: Positions) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = array[chosen[positions]]
    return values


def _from_image_array(
    array: npt.NDArray[Any],
    chosen: npt.NDArray[np.int64],
    preprocessing: Preprocessing,
    input_shape: tuple[int, ...],
    positions: Positions,
) -> npt.NDArray[np.uint8]:
    values = _from_array(array, chosen, positions).astype(np.uint8)
    shape = values.shape[1:]
    if shape == input_shape:
        channels_first = preprocessing.layout == "NCHW"
    else:
        channels_first = len(shape) == 3 and shape[-1] not in (1, 3)
    if channels_first:
        values = values.transpose(0, 2, 3, 1)
    if values.shape[-1] == 1:
        values = values[..., 0]
    images = (Image.fromarray(np.ascontiguousarray(value)) for value in values)
    return np.stack([crop(image, preprocessing, input_shape) for image in images])


def _sha256(parts: Iterable[bytes | memoryview], labels: npt.NDArray[np.int64] | None) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    if labels is not None:
        digest.update(b"labels" + labels.astype("<i8").tobytes())
    return digest.hexdigest()
