"""What the tests of processes let them do: they find it by its name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infoq_onnx.errors import DataError


@dataclass(frozen=True)
class State:
    """An array, and a folder for marks."""

    values: npt.NDArray[np.float64]
    folder: Path


def sums(state: State) -> Callable[[int], tuple[float, int, bool]]:
    """Add a number to the sum of the array; tell in which process, and whether the array may be written to."""
    return lambda task: (float(state.values.sum()) + task, os.getpid(), state.values.flags.writeable)


def dies_once(state: State) -> Callable[[int], int]:
    """Kill the process at task 3, but for the second time."""

    def work(task: int) -> int:
        mark = state.folder / "died"
        if task == 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return -task

    return work


def dies(state: State) -> Callable[[int], int]:  # noqa: ARG001
    def work(task: int) -> int:
        if task == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    return work


def ends(folder: Path, driver: int) -> None:  # noqa: ARG001
    """Stands for a process that is killed before it has done anything."""
    os._exit(1)


def fails(state: State) -> Callable[[int], int]:  # noqa: ARG001
    def work(task: int) -> int:
        raise DataError(f"image {task} has changed")

    return work


def sleeps(state: State) -> Callable[[int], int]:
    """Leave a mark with the process's id, then sleep for long."""

    def work(task: int) -> int:
        (state.folder / f"pid-{os.getpid()}").touch()
        time.sleep(600)
        return task

    return work


def lacks(state: State) -> Callable[[int], int]:  # noqa: ARG001
    """Stands for a machine on which something is not installed."""
    raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
