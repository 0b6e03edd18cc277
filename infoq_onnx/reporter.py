"""Progress reports of long computations: the stages call a `Reporter`, and the command line displays the reports."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Receives progress reports, notes and warnings."""

    def progress(self, stage: str, detail: str, done: int, total: int, share: float | None = None) -> None:
        """Report the progress of a stage. A stage begins with its first report and ends when `done` reaches `total`.

        Parameters
        ----------
        stage : name of the stage
        detail : the current item of the stage, such as a layer
        done : number of finished steps
        total : number of steps
        share : share of the work that is done, from 0 to 1; None if all steps take the same work
        """

    def note(self, text: str) -> None:
        """Report one line of information."""

    def warn(self, text: str) -> None:
        """Report one line about a problem that the user should act on."""


class Silent:
    """A reporter that ignores all reports: the default of the library."""

    def progress(self, stage: str, detail: str, done: int, total: int, share: float | None = None) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""

    def warn(self, text: str) -> None:
        """Ignore it."""
