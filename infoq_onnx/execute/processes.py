"""Tasks in several processes on this machine, which may die: what they had in hand is then done by others."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from infoq_onnx.errors import OutputError, WorkerError
from infoq_onnx.execute.shared import load_shared, save_shared
from infoq_onnx.memory import peak_of_children, resident

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

STATE = "state"
"""File that the processes read, in a folder of their own …"""
_PREFIX = ".workers-"
"""… whose name begins so."""
_LOSSES = 3
"""So many times in a row processes may die before a single task is finished."""
_GLANCE = 0.2
"""Seconds between two looks at whether a process is still wanted."""

_work: Callable[[Any], Any]
"""In a worker: what runs a task."""


class Processes(Generic[T, R]):
    """See `infoq_onnx.execute.Executor`. To be used as a context manager.

    Parameters
    ----------
    setup : called once in every process, makes the function that runs a task there; picklable, as are all the others
    state : what it makes it of: all that the tasks need to know
    workers : processes
    place : folder that a folder is made in for what they share; no other driver may use it at the same time
    memory : bytes that all of them, and this process, may take: the first task is run by one process alone, and then by
        as many as have room for what that one took, one at least; None: as many as there are workers
    """

    def __init__(
        self,
        setup: Callable[[S], Callable[[T], R]],
        state: S,
        workers: int,
        place: Path,
        memory: int | None = None,
    ) -> None:
        self._shared = (setup, state)
        self._place = place
        self._wanted = workers
        self._memory = memory
        self.workers = workers if memory is None else 1
        """Processes that run tasks at a time."""
        self._folder: Path | None = None
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Processes[T, R]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # workers end when they miss it, whatever they are at
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._drop_pool()

    def run(self, tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
        """Run the tasks, as many at a time as there are workers.

        Raises
        ------
        OutputError
            The state cannot be written where the processes find it.
        WorkerError
            Processes died again and again.
        """
        waiting = dict(enumerate(tasks))
        losses = 0
        while waiting:
            measuring = self._memory is not None
            now = dict(itertools.islice(waiting.items(), 1)) if measuring else waiting
            try:
                futures = {self._open_pool().submit(_run, task): index for index, task in now.items()}
                for future in as_completed(futures):
                    result = future.result()
                    del waiting[futures[future]]
                    losses = 0
                    yield futures[future], result
                if measuring:
                    self._measure()
            except BrokenProcessPool as error:
                self._drop_pool()
                losses += 1
                if losses == _LOSSES:
                    raise WorkerError(
                        f"worker processes died {losses} times in a row, perhaps for want of memory; give fewer "
                        "`workers`"
                    ) from error

    def _measure(self) -> None:
        """Decide how many processes have room, by what the one that has run a task has taken."""
        if self._pool is not None:
            # only of processes that have ended the system tells how much they had
            self._pool.shutdown(wait=True)
            self._pool = None
        room = (self._memory or 0) - resident()
        self.workers = min(self._wanted, max(1, room // max(1, peak_of_children())))
        self._memory = None

    def _open_pool(self) -> ProcessPoolExecutor:
        if self._folder is None:
            self._folder = _shared_folder(self._shared, self._place)
        if self._pool is None:
            # a forked process would inherit onnxruntime's and numba's threads in an undefined state
            self._pool = ProcessPoolExecutor(
                self.workers, get_context("spawn"), initializer=_begin, initargs=(self._folder, os.getpid())
            )
        return self._pool

    def _drop_pool(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _shared_folder(shared: object, place: Path) -> Path:
    """Write what the processes share into a folder of its own, in place of any that killed drivers have left."""
    folder = None
    try:
        for left in place.glob(f"{_PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        save_shared(shared, folder / STATE)
    except OSError as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise OutputError(
            f"cannot write in {place} what worker processes need: {error.strerror}; make room there, or use `workers` 1"
        ) from error
    return folder


def _begin(folder: Path, driver: int) -> None:
    """Set a worker up."""
    global _work
    # Ctrl-C reaches every process of the terminal: the driver says what there is to say
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(folder, driver), daemon=True).start()
    setup, state = load_shared(folder / STATE)
    _work = setup(state)


def _end_with(folder: Path, driver: int) -> None:
    """End this process when the driver has ended, or wants no more of it."""
    while folder.exists() and os.getppid() == driver:
        time.sleep(_GLANCE)
    # a driver that was killed has left it behind
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(1)


def _run(task: Any) -> Any:
    return _work(task)
