"""The journal of a sweep: one line a finished trial, on disk before the next begins.

A killed run leaves whole lines and perhaps one torn one; a new run with the same settings reads the whole ones, drops
the torn one, and does only what is missing. The first line names what the trials belong to, so that a journal of other
images or settings is never mixed in.
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

from infoq_onnx.errors import AnalysisError, OutputError
from infoq_onnx.files import write_text
from infoq_onnx.schema import Trial, from_json

Key = tuple[str, str, int, str]
"""(unit, kind, bits, stage)"""


class Journal:
    """Finished trials of one sweep, by key. Use `open_journal`."""

    def __init__(self, path: Path, head: str, trials: dict[Key, Trial]) -> None:
        self._path = path
        self._head = head
        self.trials = trials

    @property
    def folder(self) -> Path:
        """The folder it lies in, which `locked` keeps for one process."""
        return self._path.parent

    def add(self, stage: str, trials: Iterable[Trial]) -> None:
        """Append trials and force them to disk.

        Raises
        ------
        OutputError
            The disk is full or the folder is gone.
        """
        found: dict[Key, Trial] = {(trial.unit, trial.kind, trial.bits, stage): trial for trial in trials}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(_line(key, trial) for key, trial in found.items()))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"cannot write {self._path}: {error.strerror}; the trials so far are kept, run analyze again to go on"
            ) from error
        self.trials.update(found)

    def settle(self, order: Sequence[Key]) -> None:
        """Bring all lines into an order that does not depend on which process finished first.

        Raises
        ------
        OutputError
            The disk is full or the folder is gone.
        """
        if list(self.trials) != list(order):
            self.trials = {key: self.trials[key] for key in order}
            write_text(self._path, self._head + "".join(_line(key, trial) for key, trial in self.trials.items()))


def _line(key: Key, trial: Trial) -> str:
    return json.dumps({"stage": key[3], "trial": dataclasses.asdict(trial)}, sort_keys=True) + "\n"


def open_journal(path: Path, fingerprint: str) -> Journal:
    """Read a journal, or start one.

    Parameters
    ----------
    path : the file
    fingerprint : hash of everything that decides the trials; a journal with another one is started anew
    """
    trials: dict[Key, Trial] = {}
    head = json.dumps({"fingerprint": fingerprint}) + "\n"
    whole = 0
    if path.exists():
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise OutputError(f"cannot read {path}: {error.strerror}; choose another folder with -o") from error
        # what follows the last newline is a torn line, or empty
        if lines[:-1] and lines[0].decode(errors="replace") + "\n" == head:
            whole = len(lines[0]) + 1
            for line in lines[1:-1]:
                try:
                    record = json.loads(line)
                    trial = from_json(Trial, json.dumps(record["trial"]))
                except (ValueError, KeyError, TypeError):
                    break
                trials[trial.unit, trial.kind, trial.bits, record["stage"]] = trial
                whole += len(line) + 1
    try:
        if whole:
            os.truncate(path, whole)
        else:
            path.write_text(head, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another folder with -o") from error
    return Journal(path, head, trials)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an analysis folder for this process.

    Raises
    ------
    AnalysisError
        Another process holds it; its process id is named.
    OutputError
        The folder cannot be written.
    """
    path = folder / ".lock"
    with contextlib.closing(_lock(path)) as file:
        # the kernel drops the lock with the process, so a killed run leaves nothing to clean up
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
                f"cannot write in {path.parent}: {error.strerror}; choose another folder with -o"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise AnalysisError(
                f"{path.parent} is in use by process {holder}; wait for it, stop it, or choose another folder with -o"
            ) from error
        # a holder that ended in between has taken its file away: then others would find, and lock, another one
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()
