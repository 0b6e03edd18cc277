"""Store arrays of all images in files instead of memory."""

from __future__ import annotations

import math
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infoq_onnx.errors import OutputError, setting

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Spill:
    """Where and when to store arrays in files instead of memory."""

    folder: Path
    above: int
    """Arrays needed at the same time go to files if they take more bytes than this."""


class Filed:
    """A float32 array in an unnamed temporary file, which disappears with the process however it ends.

    The array is read and written in slices of its first axis. The file is not memory-mapped, because mapped pages would
    count as memory.

    Parameters
    ----------
    shape : shape of the array
    folder : folder of the file

    Raises
    ------
    OutputError
        The file cannot be created; also raised by writes that fail, for example on a full disk.
    """

    def __init__(self, shape: tuple[int, ...], folder: Path) -> None:
        self._inner = shape[1:]
        self._stride = 4 * math.prod(shape[1:])
        self._folder = folder
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as the array
        except OSError as error:
            raise self._no_room(error) from error
        weakref.finalize(self, self._file.close)

    def __setitem__(self, run: slice, values: Float32) -> None:
        """Write a slice of the first axis."""
        try:
            self._file.seek(run.start * self._stride)
            self._file.write(np.ascontiguousarray(values, dtype=np.float32).data)
            self._file.flush()
        except OSError as error:
            raise self._no_room(error) from error

    def __getitem__(self, run: slice) -> Float32:
        """Read a slice of the first axis, cut off at the end of the array."""
        self._file.seek(run.start * self._stride)
        read = self._file.read((run.stop - run.start) * self._stride)
        return np.frombuffer(read, dtype=np.float32).reshape(-1, *self._inner)

    def _no_room(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot keep activations in {self._folder}: {error.strerror}; make room there, or give more "
            f"{setting('memory')}"
        )
