"""Arrays of all images in a file instead of memory."""

from __future__ import annotations

import math
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infoq_onnx.errors import OutputError

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Spill:
    """Where arrays go that would take more memory than they may."""

    folder: Path
    above: int
    """Bytes that what is needed at a time may take in memory."""


class Filed:
    """A float32 array in a file without a name, which goes with the process whatever ends it.

    It is written and read in runs of its first axis. Nothing is mapped: mapped pages would count as memory.

    Parameters
    ----------
    shape : of the array
    folder : where there is room for it

    Raises
    ------
    OutputError
        From here and from writing: there is none.
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
        """Write a run."""
        try:
            self._file.seek(run.start * self._stride)
            self._file.write(np.ascontiguousarray(values, dtype=np.float32).data)
            self._file.flush()
        except OSError as error:
            raise self._no_room(error) from error

    def __getitem__(self, run: slice) -> Float32:
        """Read a run; what lies beyond the end is left out."""
        self._file.seek(run.start * self._stride)
        read = self._file.read((run.stop - run.start) * self._stride)
        return np.frombuffer(read, dtype=np.float32).reshape(-1, *self._inner)

    def _no_room(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot keep activations in {self._folder}: {error.strerror}; make room there, or give more `memory`"
        )
