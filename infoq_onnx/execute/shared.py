"""Share an object with other processes through a file or shared memory, without a copy of its large arrays in each."""

from __future__ import annotations

import io
import mmap
import pickle
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infoq_onnx.errors import DataError

_LARGE = 1 << 20
"""Arrays of at least this many bytes are shared and read-only; smaller arrays are copied."""
_ALIGNMENT = 64


class _Pickler(pickle.Pickler):
    """Pickler that stores a memory-mapped array as a reference to its file, which is mapped again when loaded."""

    def reducer_override(self, value: object) -> Any:
        # a slice of a memory-mapped array has another base and is pickled like any other array
        base: object = value.base if isinstance(value, np.memmap) else None
        if isinstance(value, np.memmap) and isinstance(base, mmap.mmap) and value.filename is not None:
            return _mapped, (str(value.filename), value.dtype, value.offset, value.shape, _order(value))
        return NotImplemented


def _order(array: npt.NDArray[Any]) -> str:
    return "C" if array.flags.c_contiguous else "F"


def _mapped(path: str, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...], order: Any) -> npt.NDArray[Any]:
    try:
        return np.memmap(path, dtype, "r", offset, shape, order)
    except OSError as error:
        raise DataError(
            f"cannot read {path} on {socket.gethostname()}: {error.strerror}; every machine that runs trials needs the "
            "calibration data at this path"
        ) from error


def parts_of(value: object) -> list[memoryview]:
    """Pickle an object. The first part is the pickle, the others are the large arrays that it refers to."""
    buffers: list[memoryview] = []

    def taken_out(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < _LARGE:
            # true keeps the array inside the pickle
            return True
        buffers.append(view)
        return False

    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=taken_out).dump(value)
    return [stream.getbuffer(), *buffers]


def from_parts(parts: Sequence[Any]) -> Any:
    """Restore an object from parts with the bytes of `parts_of`. Its large arrays use the memory of these parts."""
    return pickle.loads(parts[0], buffers=parts[1:])


def save_shared(value: object, path: Path) -> None:
    """Write an object to a file that `load_shared` can map.

    Parameters
    ----------
    value : a picklable object
    path : the file to write

    Raises
    ------
    OSError
        The file cannot be written.
    """
    parts = parts_of(value)
    with path.open("wb") as file:
        pickle.dump([part.nbytes for part in parts], file)
        for part in parts:
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            file.write(part)


def load_shared(path: Path) -> Any:
    """Load an object written by `save_shared`. Its large arrays are memory-mapped and read-only."""
    with path.open("rb") as file:
        sizes = pickle.load(file)
        offset = file.tell()
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    parts = []
    for size in sizes:
        offset += -offset % _ALIGNMENT
        parts.append(whole[offset : offset + size])
        offset += size
    return from_parts(parts)
