"""Analysis folders: their files, and functions that find, read and check them.

::

    model.infoq/
        current              name of the current measurement
        .lock                held while analyze runs
        3f2a9c01b4de/        one measurement, named by the start of its fingerprint
            analysis.json    the measurements
            ranges.npz       all grids
            codes.npz        weights rounded one layer at a time
            journal.jsonl    one line per finished trial; journal-1.jsonl: trials on added images
            SHA256SUMS       checksums of the first three files
            scores/kl.json   scores by one criterion

A folder can hold several measurements, of different models, images or settings. The measurement that finished last is
the current one. The folder of one measurement can also be used as an analysis folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from infoq_onnx.errors import AnalysisError, InfoQError, OutputError, setting
from infoq_onnx.files import advice_on, read_checksums, sha256_of, sha256_of_text, write_checksums, write_text
from infoq_onnx.schema import Analysis, Analyzed, OtherVersion, ScoreTable, UnknownField, read, to_json

_CURRENT = "current"
_ANALYSIS = "analysis.json"
T = TypeVar("T", Analysis, ScoreTable)
_NAME = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class Measurement:
    """The files of one measurement."""

    path: Path
    """Folder of the measurement."""

    @property
    def analysis(self) -> Path:
        """The measurements."""
        return self.path / _ANALYSIS

    @property
    def grids(self) -> Path:
        """All grids."""
        return self.path / "ranges.npz"

    @property
    def codes(self) -> Path:
        """Weights rounded one layer at a time. The file is optional."""
        return self.path / "codes.npz"

    @property
    def unfinished_codes(self) -> Path:
        """Weights rounded by an unfinished run. `codes` stays in use until the run is finished."""
        return self.path / "codes.next.npz"

    @property
    def journal(self) -> Path:
        """Finished trials."""
        return self.path / "journal.jsonl"

    def added_journal(self, index: int) -> Path:
        """Return the journal of trials on added images. `index` counts the extensions from 1."""
        return self.path / f"journal-{index}.jsonl"

    @property
    def checksums(self) -> Path:
        """Checksums of the files that no longer change."""
        return self.path / "SHA256SUMS"

    @property
    def scores(self) -> Path:
        """Folder of the scores, with one file per criterion."""
        return self.path / "scores"

    def scores_by(self, criterion: str) -> Path:
        """Return the file of the scores by one criterion."""
        return self.scores / f"{criterion}.json"

    def seal(self) -> None:
        """Write the checksums."""
        names = [path.name for path in (self.analysis, self.grids, self.codes) if path.is_file()]
        write_checksums(self.path, names, self.checksums.name)


@contextlib.contextmanager
def created(folder: Path) -> Iterator[None]:
    """Create a folder if it does not exist. Remove a new folder that is still empty after the block.

    Raises
    ------
    OutputError
        The folder cannot be created.
    """
    existed = os.path.isdir(folder)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot create {folder}: {error.strerror}; choose another folder with {setting('output')}"
        ) from error
    try:
        yield
    finally:
        if not existed and not any(folder.iterdir()):
            folder.rmdir()


def measurements(folder: Path) -> list[Measurement]:
    """List all measurements of an analysis folder, both finished and unfinished."""
    return [Measurement(path) for path in sorted(folder.glob("*")) if _NAME.fullmatch(path.name) and path.is_dir()]


def measurement_of(folder: Path, fingerprint: str) -> Measurement:
    """Return the measurement with a fingerprint, whether it exists or not."""
    return Measurement(folder / fingerprint[:12])


def forget(folder: Path) -> None:
    """Remove all measurements of an analysis folder."""
    (folder / _CURRENT).unlink(missing_ok=True)
    for measurement in measurements(folder):
        shutil.rmtree(measurement.path)


def make_current(folder: Path, measurement: Measurement) -> None:
    """Make a finished measurement the current one."""
    write_text(folder / _CURRENT, f"{measurement.path.name}\n")


def is_current(folder: Path, measurement: Measurement) -> bool:
    """Return whether a measurement is the current one."""
    try:
        return (folder / _CURRENT).read_text(encoding="utf-8").strip() == measurement.path.name
    except (OSError, ValueError):
        return False


def current(folder: Path | str) -> Measurement:
    """Return the current measurement of an analysis folder, or the folder itself if it is a measurement.

    Raises
    ------
    AnalysisError
        The folder holds no finished measurement, or the file `current` is damaged.
    """
    folder = Path(folder)
    pointer = folder / _CURRENT
    for path in (folder / _ANALYSIS, pointer):
        require_no_folder(path)
    if os.path.isfile(folder / _ANALYSIS):
        return Measurement(folder)
    if os.path.isfile(pointer):
        try:
            name = pointer.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise AnalysisError(f"{pointer} is damaged; run analyze again") from error
        found = Measurement(folder / name)
        if _NAME.fullmatch(name):
            require_no_folder(found.analysis)
            if os.path.isfile(found.analysis):
                return found
        if not _NAME.fullmatch(name) or not found.path.is_dir():
            raise AnalysisError(f"{pointer} is damaged; run analyze again")
    if os.path.isdir(folder) and (measurements(folder) or os.path.exists(folder / "journal.jsonl")):
        raise AnalysisError(f"{folder} is not finished; run analyze again, it goes on where it stopped")
    if os.path.lexists(folder) and not folder.is_dir():
        raise AnalysisError(
            f"{folder} is a file, and an analysis is a folder; give the one that {setting('analyze')} made"
        )
    state = f"{folder} holds no analysis" if folder.is_dir() else f"no such analysis: {folder}"
    raise AnalysisError(
        f"{state}; give the folder that {setting('analyze')} made, or make one there with {setting('analyze')} … "
        f"{setting('output')} {shlex.quote(str(folder))}"
    )


def require_no_folder(path: Path) -> None:
    """Check that there is no folder where an analysis has a file.

    Raises
    ------
    AnalysisError
        There is one.
    """
    if os.path.isdir(path):
        raise AnalysisError(f"{path} is a folder, not a file; remove it and run analyze again")


def read_analysis(folder: Path | str) -> Analysis:
    """Read a finished analysis.

    Parameters
    ----------
    folder : an analysis folder, whose current measurement is read, or the folder of one measurement

    Returns
    -------
    Analysis

    Raises
    ------
    AnalysisError
        The analysis is missing, unfinished or damaged, or has a version that cannot be read.
    """
    measurement = current(folder)
    remedy = "run analyze again"
    analysis = _read(Analysis, measurement.analysis, remedy)
    checksums = measurement.checksums
    try:
        sums = read_checksums(checksums)
    except OSError as error:
        raise _unreadable(checksums, error, remedy) from error
    except ValueError as error:
        raise AnalysisError(f"{checksums} is damaged; {remedy}") from error
    needed = {measurement.analysis.name, measurement.grids.name}
    if not needed <= sums.keys() <= {*needed, measurement.codes.name}:
        raise AnalysisError(f"{checksums} is damaged; {remedy}")
    for name, digest in sums.items():
        path = measurement.path / name
        try:
            found = sha256_of(path)
        except OSError as error:
            raise _unreadable(path, error, remedy) from error
        if found != digest:
            raise AnalysisError(f"{path} was changed after it was written; {remedy}")
    return analysis


def _unreadable(path: Path, error: OSError, remedy: str) -> AnalysisError:
    if isinstance(error, FileNotFoundError):
        return AnalysisError(f"{path} is missing; {remedy}")
    if os.path.isdir(path):
        return AnalysisError(f"{path} is a folder, not a file; remove it and {remedy}")
    return AnalysisError(f"{path} cannot be read ({error.strerror or error}); {remedy}")


def read_scores(measurement: Measurement, criterion: str) -> ScoreTable | None:
    """Read the scores by a criterion. Return None if there are none.

    Raises
    ------
    AnalysisError
        The file is damaged, or has a version that cannot be read.
    """
    path = measurement.scores_by(criterion)
    if not os.path.exists(path):
        return None
    remedy = f"make it again with: {scoring(measurement, criterion, _options_in(path))}"
    table = _read(ScoreTable, path, remedy)
    # version 1 had no hash
    hashed = table.sha256 or json.loads(path.read_text(encoding="utf-8"))["schema"] > 1
    if hashed and table.sha256 != _hash_of(table):
        raise AnalysisError(f"{path} was changed after it was written; {remedy}")
    return table


def _options_in(path: Path) -> dict[str, Any]:
    """Return the options in a file of scores, even if the rest of it is damaged; empty if they cannot be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        _, name, rest = path.read_text(encoding="utf-8").partition('"options":')
        options = json.JSONDecoder().raw_decode(rest.lstrip())[0] if name else {}
        return options if isinstance(options, dict) else {}
    return {}


def scoring(measurement: Measurement, criterion: str, options: Mapping[str, Any]) -> str:
    """Return the command that makes scores, as part of a message.

    Parameters
    ----------
    measurement : the measurement to score
    criterion : name of the criterion
    options : options of the criterion; left out if they are its defaults, or if it does not accept them
    """
    from infoq_onnx.sensitivity.criteria import get_criterion

    values: dict[str, Any] = {}
    with contextlib.suppress(InfoQError):
        chosen = get_criterion(criterion)
        defaults = chosen.settings({})
        values = {name: value for name, value in chosen.settings(options).items() if value != defaults[name]}
    words = [setting("score"), shlex.quote(str(measurement.path)), setting("criterion"), shlex.quote(criterion)]
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(setting(name if value else f"no_{name}"))
        else:
            words += [setting(name), shlex.quote(str(value))]
    return " ".join(words)


def write_scores(measurement: Measurement, table: ScoreTable) -> None:
    """Write the scores by one criterion, with a hash by which `read_scores` notices changes.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    if os.path.isdir(path := measurement.scores_by(table.criterion)):
        raise OutputError(f"cannot write {path}: it is a folder; remove it")
    try:
        measurement.scores.mkdir(exist_ok=True)
    except OSError as error:
        remedy = "remove that file" if isinstance(error, FileExistsError) else advice_on(error)
        raise OutputError(f"cannot create {measurement.scores}: {error.strerror}; {remedy}") from error
    write_text(path, to_json(with_hash(table)))


def with_hash(table: ScoreTable) -> ScoreTable:
    """Return scores with the hash of all their other fields."""
    return dataclasses.replace(table, sha256=_hash_of(table))


def _hash_of(table: ScoreTable) -> str:
    return sha256_of_text(to_json(dataclasses.replace(table, sha256=""), compact=True))


def scored(measurement: Measurement) -> list[str]:
    """List the criteria for which an analysis has a file of scores."""
    return sorted(path.stem for path in measurement.scores.glob("*.json"))


def read_analyzed(folder: Path | str) -> Analyzed:
    """Read a finished analysis with all its scores. Raises the errors of `read_analysis` and `read_scores`."""
    found, measurement = read_analysis(folder), current(folder)
    tables = {name: read_scores(measurement, name) for name in scored(measurement)}
    return Analyzed(found, {name: table for name, table in tables.items() if table is not None})


def is_of(table: ScoreTable, measurement: Measurement) -> bool:
    """Return whether scores were computed from the present state of the measurement."""
    return table.measured_sha256 == sha256_of(measurement.analysis)


def _read(cls: type[T], path: Path, remedy: str) -> T:
    try:
        return read(cls, path.read_text(encoding="utf-8"))
    except OtherVersion as error:
        raise AnalysisError(f"{path} {error}, or {remedy}") from error
    except UnknownField as error:
        raise AnalysisError(
            f"{path} has a field that this infoq-onnx does not know ({error}): another version wrote it, or a hand; "
            f"{remedy}"
        ) from error
    except OSError as error:
        raise _unreadable(path, error, remedy) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise AnalysisError(f"{path} is damaged (not JSON text); {remedy}") from error
    except ValueError as error:
        raise AnalysisError(f"{path} is damaged ({' '.join(str(error).split())}); {remedy}") from error


def find_analysis(folder: Path | str = ".") -> Path:
    """Return the newest finished analysis (`*.infoq`) in a folder.

    Raises
    ------
    AnalysisError
        The folder holds no finished analysis.
    """
    found: dict[Path, tuple[int, str]] = {}
    refused: AnalysisError | None = None
    for path in sorted(Path(folder).glob("*.infoq")):
        try:
            found[path] = (current(path).analysis.stat().st_mtime_ns, path.name)
        except AnalysisError as error:
            # ignore an empty folder
            refused = refused or (error if path.is_dir() and any(path.iterdir()) else None)
    if found:
        return max(found, key=found.__getitem__)
    if refused is not None:
        raise refused
    raise AnalysisError(
        f"no finished analysis (*.infoq) in {Path(folder).resolve()}; make one with {setting('analyze')}"
    )
