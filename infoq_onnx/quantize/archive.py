"""Read arrays of an .npz file of an analysis, and check that they are what was written."""

from __future__ import annotations

import zipfile
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from infoq_onnx.errors import AnalysisError
from infoq_onnx.schema import BITS

# RuntimeError: raised by zipfile for an unknown flag or version; TypeError: by numpy for an array of no dimensions
UNREADABLE = (
    *(OSError, ValueError, TypeError, KeyError, IndexError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
"""Exceptions that reading a damaged .npz file raises."""

ABOVE_ZERO = float(np.finfo(np.float32).smallest_subnormal)
"""Smallest positive float32."""


def checked(
    array: npt.NDArray[Any],
    what: str,
    dtype: type[np.generic],
    shape: tuple[int | None, ...] | None = None,
    low: float = -np.inf,
    high: float = np.inf,
) -> npt.NDArray[Any]:
    """Return an array unchanged if it has the right type and shape, and finite values in a range.

    Parameters
    ----------
    array : the array
    what : what it holds, for the message
    dtype : its type
    shape : its shape, with None for any size; None: any shape
    low, high : bounds of its values, inclusive

    Raises
    ------
    ValueError
        Something differs.
    """
    fits = shape is None or (
        array.ndim == len(shape)
        and all(size in (None, actual) for size, actual in zip(shape, array.shape, strict=True))
    )
    if array.dtype != dtype or not fits:
        raise ValueError(f"{what}: {array.dtype} of shape {array.shape}")
    if not np.isfinite(array).all() or (array.size and (array.min() < low or array.max() > high)):
        raise ValueError(f"{what}: values that are not finite, or out of range")
    return array


def checked_bits(value: float) -> int:
    """Return a bit-width as an integer.

    Raises
    ------
    ValueError
        It is not one of `BITS`.
    """
    if value not in BITS:
        raise ValueError(f"{value:g} bits")
    return int(value)


def damaged(path: object, error: Exception) -> AnalysisError:
    """Return an error with a one-line message that a file of an analysis cannot be read."""
    reason = " ".join(str(error).split())
    return AnalysisError(f"{path} is missing or damaged ({reason}); run analyze again")
