"""The journal of finished trials: one line per trial, written to disk before the next trial begins.

A killed run leaves complete lines and possibly one torn line. A new run of the same measurement reads the complete
lines, drops the torn line, and runs only the missing trials. The first line holds the fingerprint of the measurement,
so that trials of other images or settings are never mixed in. If later observers see a trial again, the journal gets
another line for the trial, and the lines are merged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from infoq_onnx.errors import AnalysisError, OutputError, setting
from infoq_onnx.files import write_text
from infoq_onnx.schema import Change, Delta, Trial, from_json

Key = tuple[Change, ...]
"""The changes of a trial, which identify it."""


class Journal:
    """Finished trials of one measurement, by their changes. Use `open_journal` to create one."""

    def __init__(self, path: Path, head: str, trials: dict[Key, Trial]) -> None:
        self._path = path
        self._head = head
        self.trials = trials

    @property
    def folder(self) -> Path:
        """Folder of the journal, which `locked` reserves for one process."""
        return self._path.parent

    def add(self, trials: Iterable[Trial]) -> None:
        """Append trials, force them to disk, and merge them with known trials of the same changes.

        Raises
        ------
        OutputError
            The disk is full or the folder is gone.
        """
        found = list(trials)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(map(_line, found)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"cannot write {self._path}: {error.strerror}; the trials so far are kept, run analyze again to go on"
            ) from error
        for trial in found:
            _take_together(self.trials, trial)

    def settle(self, order: Sequence[Key]) -> None:
        """Rewrite the file with one line per trial, so that the order does not depend on which process finished first.

        Parameters
        ----------
        order : all trials to keep, in the order of the lines

        Raises
        ------
        OutputError
            The disk is full or the folder is gone.
        """
        self.trials = {key: self.trials[key] for key in order}
        text = self._head + "".join(map(_line, self.trials.values()))
        if text.encode() != self._path.read_bytes():
            write_text(self._path, text)


def _line(trial: Trial) -> str:
    return json.dumps(dataclasses.asdict(trial), sort_keys=True) + "\n"


def _take_together(trials: dict[Key, Trial], trial: Trial) -> None:
    """Add a trial. Differences that observers measured for the same changes before are kept unless measured again."""
    known = trials.get(trial.changes)
    if known is not None:
        deltas = {**known.deltas, **trial.deltas}
        for tensor in known.deltas.keys() & trial.deltas.keys():
            before, now = known.deltas[tensor], trial.deltas[tensor]
            xl, ly = (now if now.xl is not None else before), (now if now.ly is not None else before)
            deltas[tensor] = Delta(xl.xl, xl.xl_se, ly.ly, ly.ly_se)
        trial = dataclasses.replace(trial, deltas=dict(sorted(deltas.items())))
    trials[trial.changes] = trial


def open_journal(path: Path, fingerprint: str) -> Journal:
    """Read a journal, or start a new one.

    Parameters
    ----------
    path : the file
    fingerprint : hash of everything that determines a trial; a journal with another fingerprint is overwritten

    Returns
    -------
    Journal

    Raises
    ------
    OutputError
        The file cannot be read or written.
    """
    trials: dict[Key, Trial] = {}
    head = json.dumps({"fingerprint": fingerprint}) + "\n"
    whole = 0
    if path.exists():
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise OutputError(
                f"cannot read {path}: {error.strerror}; choose another folder with {setting('output')}"
            ) from error
        # the text after the last newline is a torn line, or empty
        if lines[:-1] and lines[0].decode(errors="replace") + "\n" == head:
            whole = len(lines[0]) + 1
            for line in lines[1:-1]:
                try:
                    trial = from_json(Trial, line.decode())
                except ValueError:
                    break
                _take_together(trials, trial)
                whole += len(line) + 1
    try:
        if whole:
            os.truncate(path, whole)
        else:
            path.write_text(head, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; choose another folder with {setting('output')}"
        ) from error
    return Journal(path, head, trials)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Reserve an analysis folder for this process.

    Raises
    ------
    AnalysisError
        Another process holds the folder. The message names its process id.
    OutputError
        The folder cannot be written.
    """
    path = folder / ".lock"
    with contextlib.closing(_lock(path)) as file:
        # the operating system releases the lock when the process ends, so a killed run leaves nothing to clean up
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(path: Path) -> IO[str]:
    while True:
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"cannot write in {path.parent}: {error.strerror}; choose another folder with {setting('output')}"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise AnalysisError(
                f"{path.parent} is in use by process {holder}; wait for it, stop it, or choose another folder with "
                f"{setting('output')}"
            ) from error
        # if the previous holder removed the file in the meantime, other processes would lock a new file: try again
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()
