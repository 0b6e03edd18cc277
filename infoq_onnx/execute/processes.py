"""Run tasks in several processes on this machine. If a process dies, its tasks are run again in another."""

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

from infoq_onnx.errors import OutputError, WorkerError, setting
from infoq_onnx.execute.shared import load_shared, save_shared
from infoq_onnx.memory import peak_of_children, resident

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

STATE = "state"
"""Name of the file with the shared state, in a temporary folder."""
_PREFIX = ".workers-"
"""Prefix of the name of that folder."""
_LOSSES = 3
"""Number of consecutive worker deaths, without a finished task in between, after which a run fails."""
_GLANCE = 0.2
"""Interval in seconds at which a worker checks whether it is still needed."""

_work: Callable[[Any], Any]
"""In a worker process: the function that runs a task."""


class Processes(Generic[T, R]):
    """Executor that runs tasks in worker processes. Use as a context manager.

    Parameters
    ----------
    setup : function that is called with `state` once in every worker process and returns the function that runs a task
    state : data shared by all tasks; `setup`, `state`, tasks and results must be picklable
    workers : number of worker processes
    place : folder in which a temporary folder with the shared data is created; must not be used by another instance at
        the same time
    memory : bytes that all workers and this process together may use. The first task runs in a single worker, whose
        peak memory then determines how many workers fit, at least one. None always uses `workers` processes.
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
        """Number of worker processes."""
        self._folder: Path | None = None
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Processes[T, R]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # workers exit as soon as this folder is gone, even during a task
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._drop_pool()

    def run(self, tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
        """Run the tasks, as many at a time as there are workers.

        Raises
        ------
        OutputError
            The shared data cannot be written to `place`.
        WorkerError
            Worker processes died repeatedly.
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
                    if _is_unguarded():
                        raise WorkerError(
                            "worker processes cannot start, as each runs the main script once more: put its call under "
                            f'`if __name__ == "__main__":`, or use {setting("workers")} 1'
                        ) from error
                    raise WorkerError(
                        f"worker processes died {losses} times in a row, perhaps for want of memory; give fewer "
                        f"{setting('workers')}"
                    ) from error

    def _measure(self) -> None:
        """Set the number of workers that fit into memory from the peak memory of the first worker."""
        if self._pool is not None:
            # the system reports the peak memory of child processes only after they have ended
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
    """Write the shared data to a new folder, and remove folders left behind by killed processes."""
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
            f"cannot write in {place} what worker processes need: {error.strerror}; make room there, or use "
            f"{setting('workers')} 1"
        ) from error
    return folder


def _is_unguarded() -> bool:
    """Return whether the main script does not ask under what name it runs."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    try:
        return script is not None and "__name__" not in Path(script).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _begin(folder: Path, driver: int) -> None:
    """Initialise a worker process."""
    global _work
    # Ctrl-C reaches every process of the terminal: workers exit silently, the driver reports it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(folder, driver), daemon=True).start()
    setup, state = load_shared(folder / STATE)
    _work = setup(state)


def _end_with(folder: Path, driver: int) -> None:
    """Exit this worker process when the driver has ended or has removed the folder."""
    while folder.exists() and os.getppid() == driver:
        time.sleep(_GLANCE)
    # a killed driver leaves the folder behind
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(1)


def _run(task: Any) -> Any:
    return _work(task)
