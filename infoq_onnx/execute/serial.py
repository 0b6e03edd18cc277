"""Run tasks one after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Serial(Generic[T, R]):
    """Executor that runs tasks in this process.

    Parameters
    ----------
    work : function that runs a task
    """

    def __init__(self, work: Callable[[T], R]) -> None:
        self._work = work

    def run(self, tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
        """Run the tasks in order, and yield the index and the result of each."""
        for index, task in enumerate(tasks):
            yield index, self._work(task)
