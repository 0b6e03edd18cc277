"""An object in a file that many processes read: its large arrays are mapped, so they lie in memory once for all."""

from __future__ import annotations

import io
import mmap
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_LARGE = 1 << 20
"""Arrays of at least this many bytes are mapped, and cannot be written to; smaller ones are copied."""
_ALIGNMENT = 64


class _Pickler(pickle.Pickler):
    """Lets arrays that are mapped already be mapped again, however large their file."""

    def reducer_override(self, value: object) -> Any:
        # a part of such an array has another base, and is an array as any
        base: object = value.base if isinstance(value, np.memmap) else None
        if isinstance(value, np.memmap) and isinstance(base, mmap.mmap) and value.filename is not None:
            return np.memmap, (value.filename, value.dtype, "r", value.offset, value.shape, _order(value))
        return NotImplemented


def _order(array: npt.NDArray[Any]) -> str:
    return "C" if array.flags.c_contiguous else "F"


def save_shared(value: object, path: Path) -> None:
    """Write an object that can be pickled.

    Raises
    ------
    OSError
        The disk is full, or the like.
    """
    buffers: list[memoryview] = []

    def taken_out(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < _LARGE:
            # true: it stays where it is
            return True
        buffers.append(view)
        return False

    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=taken_out).dump(value)
    head = stream.getbuffer()
    with path.open("wb") as file:
        pickle.dump((head.nbytes, [view.nbytes for view in buffers]), file)
        for part in (head, *buffers):
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            file.write(part)


def load_shared(path: Path) -> Any:
    """Read the object again."""
    with path.open("rb") as file:
        head, sizes = pickle.load(file)
        offset = file.tell()
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    parts = []
    for size in (head, *sizes):
        offset += -offset % _ALIGNMENT
        parts.append(whole[offset : offset + size])
        offset += size
    return pickle.loads(parts[0], buffers=parts[1:])
