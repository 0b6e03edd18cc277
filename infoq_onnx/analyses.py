"""Analysis folders: which files they hold, and how they are found, read and kept whole.

::

    model.infoq/
        current              name of the measurement in use
        .lock                held while analyze runs
        3f2a9c01b4de/        one measurement: the start of its fingerprint
            analysis.json    what was measured
            ranges.npz       every grid
            codes.npz        weights rounded one layer at a time
            journal.jsonl    one line a finished trial; journal-1.jsonl: on images that were added
            SHA256SUMS       checksums of the first three
            scores/kl.json   scores by one criterion

A measurement of something else is kept beside the others, and the one that was finished last is in use. The folder of
one measurement can be named as an analysis, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from infoq_onnx.errors import AnalysisError, OutputError
from infoq_onnx.files import first_changed, sha256_of, write_checksums, write_text
from infoq_onnx.schema import Analysis, Analyzed, OtherVersion, ScoreTable, UnknownField, read, to_json

_CURRENT = "current"
_ANALYSIS = "analysis.json"
T = TypeVar("T", Analysis, ScoreTable)
_NAME = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class Measurement:
    """The files of one measurement."""

    path: Path
    """Its folder."""

    @property
    def analysis(self) -> Path:
        """What was measured."""
        return self.path / _ANALYSIS

    @property
    def grids(self) -> Path:
        """Every grid."""
        return self.path / "ranges.npz"

    @property
    def codes(self) -> Path:
        """Weights that were rounded one layer at a time, where there are any."""
        return self.path / "codes.npz"

    @property
    def unfinished_codes(self) -> Path:
        """Those of a run that is not finished: the finished ones are needed until it is."""
        return self.path / "codes.next.npz"

    @property
    def journal(self) -> Path:
        """Finished trials."""
        return self.path / "journal.jsonl"

    def added_journal(self, index: int) -> Path:
        """Finished trials on images that the analysis was extended by; `index` counts the extensions from 1."""
        return self.path / f"journal-{index}.jsonl"

    @property
    def checksums(self) -> Path:
        """Checksums of what does not change any more."""
        return self.path / "SHA256SUMS"

    @property
    def scores(self) -> Path:
        """Folder of the scores, one file a criterion."""
        return self.path / "scores"

    def scores_by(self, criterion: str) -> Path:
        """Scores by one criterion."""
        return self.scores / f"{criterion}.json"

    def seal(self) -> None:
        """Write the checksums."""
        names = [path.name for path in (self.analysis, self.grids, self.codes) if path.exists()]
        write_checksums(self.path, names, self.checksums.name)


@contextlib.contextmanager
def created(folder: Path) -> Iterator[None]:
    """Make sure that a folder exists; one that was made here goes again when the block has put nothing in it."""
    existed = os.path.isdir(folder)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {folder}: {error.strerror}; choose another folder with -o") from error
    try:
        yield
    finally:
        if not existed and not any(folder.iterdir()):
            folder.rmdir()


def measurements(folder: Path) -> list[Measurement]:
    """List all measurements of an analysis folder, finished or not."""
    return [Measurement(path) for path in sorted(folder.glob("*")) if _NAME.fullmatch(path.name) and path.is_dir()]


def measurement_of(folder: Path, fingerprint: str) -> Measurement:
    """Return the measurement of a fingerprint, whether it is there or not."""
    return Measurement(folder / fingerprint[:12])


def forget(folder: Path) -> None:
    """Remove all measurements of an analysis folder."""
    (folder / _CURRENT).unlink(missing_ok=True)
    for measurement in measurements(folder):
        shutil.rmtree(measurement.path)


def make_current(folder: Path, measurement: Measurement) -> None:
    """Put a finished measurement in use."""
    write_text(folder / _CURRENT, f"{measurement.path.name}\n")


def is_current(folder: Path, measurement: Measurement) -> bool:
    """Whether a measurement is in use."""
    try:
        return (folder / _CURRENT).read_text(encoding="utf-8").strip() == measurement.path.name
    except (OSError, ValueError):
        return False


def current(folder: Path | str) -> Measurement:
    """Return the measurement in use of an analysis folder, or the one that the folder itself is.

    Raises
    ------
    AnalysisError
        There is none that is finished.
    """
    folder = Path(folder)
    if os.path.isfile(folder / _ANALYSIS):
        return Measurement(folder)
    pointer = folder / _CURRENT
    if os.path.isfile(pointer):
        try:
            name = pointer.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise AnalysisError(f"{pointer} is damaged; run analyze again") from error
        found = Measurement(folder / name)
        if _NAME.fullmatch(name) and os.path.isfile(found.analysis):
            return found
        if not _NAME.fullmatch(name) or not found.path.is_dir():
            raise AnalysisError(f"{pointer} is damaged; run analyze again")
    if os.path.isdir(folder) and (measurements(folder) or os.path.exists(folder / "journal.jsonl")):
        raise AnalysisError(f"{folder} is not finished; run analyze again, it goes on where it stopped")
    raise AnalysisError(f"{folder} holds no analysis; make one with `analyze`")


def read_analysis(folder: Path | str) -> Analysis:
    """Read a finished analysis.

    Parameters
    ----------
    folder : an analysis folder, whose measurement in use is read, or the folder of one measurement

    Raises
    ------
    AnalysisError
        Missing, unfinished, damaged, or of a version that cannot be read.
    """
    measurement = current(folder)
    analysis = _read(Analysis, measurement.analysis, "run analyze again")
    try:
        changed = first_changed(measurement.path, measurement.checksums.name)
    except FileNotFoundError as error:
        raise AnalysisError(f"{error.filename} is missing; run analyze again") from error
    except (OSError, ValueError) as error:
        raise AnalysisError(f"{measurement.checksums} is damaged; run analyze again") from error
    if changed is not None:
        raise AnalysisError(f"{measurement.path / changed} was changed after it was written; run analyze again")
    return analysis


def read_scores(measurement: Measurement, criterion: str) -> ScoreTable | None:
    """Read the scores by a criterion; None where there are none.

    Raises
    ------
    AnalysisError
        Damaged, or of a version that cannot be read.
    """
    path = measurement.scores_by(criterion)
    if not os.path.exists(path):
        return None
    return _read(ScoreTable, path, f"make it again with: `score` `criterion` {criterion}")


def write_scores(measurement: Measurement, table: ScoreTable) -> None:
    """Write the scores by one criterion.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    try:
        measurement.scores.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {measurement.scores}: {error.strerror}") from error
    write_text(measurement.scores_by(table.criterion), to_json(table))


def scored(measurement: Measurement) -> list[str]:
    """List the criteria that an analysis has a file of scores by."""
    return sorted(path.stem for path in measurement.scores.glob("*.json"))


def read_analyzed(folder: Path | str) -> Analyzed:
    """Read a finished analysis with all its scores; raises as `read_analysis` and `read_scores` do."""
    found, measurement = read_analysis(folder), current(folder)
    tables = {name: read_scores(measurement, name) for name in scored(measurement)}
    return Analyzed(found, {name: table for name, table in tables.items() if table is not None})


def is_of(table: ScoreTable, measurement: Measurement) -> bool:
    """Whether scores were computed of the measurement as it is now."""
    return table.measured_sha256 == sha256_of(measurement.analysis)


def _read(cls: type[T], path: Path, remedy: str) -> T:
    try:
        return read(cls, path.read_text(encoding="utf-8"))
    except OtherVersion as error:
        raise AnalysisError(f"{path} {error}") from error
    except UnknownField as error:
        raise AnalysisError(
            f"{path} has a field that this infoq-onnx does not know ({error}): another version wrote it, or a hand; "
            f"{remedy}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise AnalysisError(f"{path} is damaged ({' '.join(str(error).split())}); {remedy}") from error


def find_analysis(folder: Path | str = ".") -> Path:
    """Return the newest finished analysis in a folder.

    Raises
    ------
    AnalysisError
        There is none.
    """
    found: dict[Path, tuple[int, str]] = {}
    refused: AnalysisError | None = None
    for path in sorted(Path(folder).glob("*.infoq")):
        try:
            found[path] = (current(path).analysis.stat().st_mtime_ns, path.name)
        except AnalysisError as error:
            # a folder of that name with nothing in it is no reason to tell of it
            refused = refused or (error if path.is_dir() and any(path.iterdir()) else None)
    if found:
        return max(found, key=found.__getitem__)
    if refused is not None:
        raise refused
    raise AnalysisError(f"no finished analysis (*.infoq) in {Path(folder).resolve()}; make one with `analyze`")
