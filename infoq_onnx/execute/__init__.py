"""Run tasks that do not depend on one another, in this process or in others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class Executor(Protocol[T_contra, R_co]):
    """Runs tasks."""

    def run(self, tasks: Sequence[T_contra]) -> Iterator[tuple[int, R_co]]:
        """Yield the index of each task with its result, in the order in which they are finished.

        Raises
        ------
        WorkerError
            Processes died again and again.
        """
