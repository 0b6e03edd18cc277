"""How long work tells what it is doing: the stages call a Reporter, the command line shows it."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Receives progress and remarks."""

    def progress(self, stage: str, detail: str, done: int, total: int, share: float | None = None) -> None:
        """Say how far a stage is. A stage begins with its first call and ends when `done` reaches `total`.

        Parameters
        ----------
        stage, detail : what is done, and what of it just now
        done, total : steps
        share : of the work that is behind, where steps differ in it
        """

    def note(self, text: str) -> None:
        """Say something the user should know, in one line."""

    def warn(self, text: str) -> None:
        """Say something the user should do something about, in one line."""


class Silent:
    """Reports nothing: the library's default."""

    def progress(self, stage: str, detail: str, done: int, total: int, share: float | None = None) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""

    def warn(self, text: str) -> None:
        """Ignore it."""
