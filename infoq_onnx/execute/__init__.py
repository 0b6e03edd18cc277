"""Run independent tasks in this process, in worker processes or on a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class Executor(Protocol[T_contra, R_co]):
    """Runs independent tasks."""

    def run(self, tasks: Sequence[T_contra]) -> Iterator[tuple[int, R_co]]:
        """Yield the index and the result of each task, in order of completion.

        Raises
        ------
        WorkerError
            Worker processes died repeatedly.
        """
