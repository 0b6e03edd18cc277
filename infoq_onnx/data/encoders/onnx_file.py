"""Use any ONNX model as an encoder: the features are its first output, or a named output, flattened.

Image encoders exported by Hugging Face (recognised by the input name ``pixel_values``) follow conventions that are
applied here: RGB input normalised by ImageNet's mean and std, 224 pixels if the size is free, and the first token (the
class token) of the output ``last_hidden_state``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.data.encoders.resample import resize
from infoq_onnx.data.preprocess import IMAGENET_MEAN, IMAGENET_STD
from infoq_onnx.errors import ModelError
from infoq_onnx.graph.ort import ORT_ERRORS, first_line, run_session
from infoq_onnx.graph.session import open_session
from infoq_onnx.schema import Preprocessing

_HF_INPUT, _HF_OUTPUT, _HF_SIDE = "pixel_values", "last_hidden_state", 224
_TYPES: dict[str, npt.DTypeLike] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}

Shape = Sequence[int | str | None]


def encode(
    model: bytes | str | Path, dataset: Dataset, batch: int, output_name: str | None = None
) -> npt.NDArray[np.float64]:
    """Compute the features of every sample with an ONNX model.

    Samples that have the model's input shape are passed unchanged. Other images are transposed between NCHW and NHWC,
    converted from one channel to three (repeated) or from three to one (mean), and resized.

    Parameters
    ----------
    model
        Path of an ONNX file, or its content.
    dataset
        The samples.
    batch
        Number of samples per run; ignored if the model has a fixed batch size.
    output_name
        Name of the output to use; None uses the first.

    Returns
    -------
    features : ndarray of float64, [N, e]

    Raises
    ------
    ModelError
        The model cannot be loaded or run, or its features of some sample are not finite.
    """
    what = "the encoder" if isinstance(model, bytes) else f"the encoder {model}"
    try:
        session = open_session(model if isinstance(model, bytes) else Path(model))
    except ORT_ERRORS as error:
        raise ModelError(
            f"{what} cannot be loaded ({first_line(error)}); give an ONNX file that maps images to features"
        ) from error
    (name, shape, dtype), output = _signature(session, output_name, what)
    # a model with a fixed batch size gets batches of that size; the last batch is padded
    fixed = shape[0] if isinstance(shape[0], int) else None
    features = []
    for tensors in dataset.batches(fixed or batch):
        adapted = _adapt(tensors, dataset, name, shape, what).astype(dtype)
        if fixed is not None and len(adapted) < fixed:
            adapted = np.concatenate([adapted, np.repeat(adapted[-1:], fixed - len(adapted), axis=0)])
        try:
            (result,) = run_session(session, {name: adapted}, [output])
        except ORT_ERRORS as error:
            raise ModelError(f"{what} does not run on inputs {adapted.shape}: {first_line(error)}") from error
        features.append(_vectors(np.asarray(result), output, len(adapted), what)[: len(tensors)])
    return np.concatenate(features)


def _signature(
    session: ort.InferenceSession, output_name: str | None, what: str
) -> tuple[tuple[str, Shape, npt.DTypeLike], str]:
    inputs, outputs = session.get_inputs(), [value.name for value in session.get_outputs()]
    if len(inputs) != 1 or inputs[0].type not in _TYPES or not inputs[0].shape:
        found = ", ".join(f"{value.name}: {value.type} {value.shape}" for value in inputs)
        raise ModelError(f"{what} must take one batch of floats, [N, ...], and takes {found or 'nothing'}")
    if output_name is not None and output_name not in outputs:
        raise ModelError(f"{what} has no output {output_name!r}: it has {', '.join(outputs)}")
    return (inputs[0].name, inputs[0].shape, _TYPES[inputs[0].type]), output_name or outputs[0]


def _adapt(
    tensors: npt.NDArray[np.float32], dataset: Dataset, name: str, shape: Shape, what: str
) -> npt.NDArray[np.float32]:
    """Convert samples to the model's input shape."""
    wanted = [size if isinstance(size, int) else None for size in shape[1:]]
    conventional = name == _HF_INPUT and len(wanted) == 3
    if conventional:
        wanted = [size or default for size, default in zip(wanted, (3, _HF_SIDE, _HF_SIDE), strict=True)]
    elif _fits(tensors.shape[1:], wanted):
        return tensors
    if dataset.layout is None or len(wanted) != 3:
        raise ModelError(f"{what} takes samples of shape {list(shape[1:])}, and those here have {tensors.shape[1:]}")

    images = tensors if dataset.layout == "NCHW" else tensors.transpose(0, 3, 1, 2)
    if conventional and dataset.preprocessing is not None:
        images = _imagenet_rgb(images, dataset.preprocessing)
    channels_last = wanted[0] not in (1, 3) and wanted[2] in (1, 3)
    channels, height, width = (wanted[2], wanted[0], wanted[1]) if channels_last else wanted
    if channels == 3 and images.shape[1] == 1:
        images = np.repeat(images, 3, axis=1)
    elif channels == 1 and images.shape[1] == 3:
        images = images.mean(axis=1, keepdims=True)
    images = resize(images, height or images.shape[2], width or images.shape[3])
    if channels_last:
        images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    if not _fits(images.shape[1:], wanted):
        raise ModelError(f"{what} takes samples of shape {list(shape[1:])}, and those here have {tensors.shape[1:]}")
    return images


def _fits(shape: tuple[int, ...], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(want in (None, size) for size, want in zip(shape, wanted, strict=True))


def _imagenet_rgb(images: npt.NDArray[np.float32], preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """Replace the normalisation of images [N, C, H, W] by ImageNet's, in RGB."""

    def by_channel(values: Sequence[float]) -> npt.NDArray[np.float32]:
        return np.array(values, np.float32).reshape(-1, 1, 1)

    unit = (images * by_channel(preprocessing.std) + by_channel(preprocessing.mean)) * (preprocessing.scale / 255)
    if preprocessing.color == "BGR":
        unit = unit[:, ::-1]
    return np.asarray((unit - by_channel(IMAGENET_MEAN)) / by_channel(IMAGENET_STD), np.float32)


def _vectors(result: npt.NDArray[np.generic], output: str, count: int, what: str) -> npt.NDArray[np.float64]:
    if result.ndim < 1 or len(result) != count or result.dtype.kind not in "fiu":
        raise ModelError(f"{what} gives {result.dtype} {result.shape} for {count} samples: expected one row a sample")
    if output == _HF_OUTPUT and result.ndim == 3:
        result = result[:, 0]
    vectors = result.reshape(count, -1).astype(np.float64)
    if not np.isfinite(vectors).all():
        raise ModelError(f"{what} gives NaN or infinite features for some of these samples")
    return vectors
