"""What the commands print: results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_INTERVAL = 30.0
"""Seconds between lines of progress where there is no terminal."""


def stdout() -> Console:
    """Return a console for results; as wide as the table where the output is no terminal, so that nothing is cut."""
    return Console() if sys.stdout.isatty() else Console(width=200, force_terminal=False)


class ConsoleReporter:
    """Shows progress on stderr: a live bar on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=Console(stderr=True),
            disable=not self._live,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._last = time.monotonic()

    def __enter__(self) -> ConsoleReporter:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def progress(self, stage: str, detail: str, done: int, total: int) -> None:
        """Show how far a stage is."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total, completed=done, detail=detail)
            self._started[stage] = (time.monotonic(), done)
        self._bar.update(self._tasks[stage], completed=done, total=total, detail=detail)
        now = time.monotonic()
        if not self._live and (now - self._last >= PLAIN_INTERVAL or done == total):
            self._last = now
            began, first = self._started[stage]
            rate = (done - first) / (now - began) if now > began else 0.0
            eta = f", {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
            click.echo(f"{stage} {done}/{total} ({detail}{eta})", err=True)

    def note(self, text: str) -> None:
        """Say something, in one line."""
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Say something to be acted on, in one line."""
        self._bar.console.print(f"warning: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)
