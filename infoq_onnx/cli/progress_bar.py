"""Output of the commands: results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from infoq_onnx.cli.wording import in_options

PLAIN_INTERVAL = 30.0
"""Seconds between lines of progress without a terminal."""


class ConsoleReporter:
    """Shows progress on stderr: a live bar on a terminal, otherwise a line every PLAIN_INTERVAL seconds."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=Console(stderr=True),
            disable=not self._live,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, float]] = {}
        self._last = time.monotonic()

    def __enter__(self) -> ConsoleReporter:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def progress(self, stage: str, detail: str, done: int, total: int, share: float | None = None) -> None:
        """Show the progress of a stage.

        Parameters
        ----------
        stage : name of the stage
        detail : the item processed last
        done, total : number of finished items and of all items
        share : share of the work done, from 0 to 1; None: done / total
        """
        behind = done / max(total, 1) if share is None else share
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=1.0, detail=detail, count="")
            self._started[stage] = (time.monotonic(), behind)
        self._bar.update(self._tasks[stage], completed=behind, detail=detail, count=f"{done}/{total}")
        now = time.monotonic()
        if not self._live and (now - self._last >= PLAIN_INTERVAL or done == total):
            self._last = now
            began, first = self._started[stage]
            rate = (behind - first) / (now - began) if now > began else 0.0
            eta = f", {(1 - behind) / rate:.0f} s left" if rate > 0 and done < total else ""
            remark = f"{detail}{eta}".removeprefix(", ")
            click.echo(f"{stage} {done}/{total}" + (f" ({remark})" if remark else ""), err=True)

    def note(self, text: str) -> None:
        """Print a remark in one line."""
        self._print(text)

    def warn(self, text: str) -> None:
        """Print a warning in one line."""
        self._print(f"warning: {text}", style="yellow")

    def _print(self, text: str, style: str | None = None) -> None:
        self._bar.console.print(in_options(text), style=style, highlight=False, markup=False, soft_wrap=True)
