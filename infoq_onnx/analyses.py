"""Analysis folders: make, find and read them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from infoq_onnx.errors import AnalysisError, OutputError
from infoq_onnx.files import first_changed
from infoq_onnx.schema import SCHEMA_VERSION, Analysis, from_json, schema_of

CHECKSUMS = "SHA256SUMS"
"""File of an analysis that holds the checksums of the others."""
CODES = "codes.npz"
"""File of an analysis with the weights that were rounded one layer at a time, where there are any."""


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


def read_analysis(folder: Path | str) -> Analysis:
    """Read a finished analysis.

    Raises
    ------
    AnalysisError
        Missing, unfinished, damaged, or of another schema version.
    """
    path = Path(folder) / "analysis.json"
    if not os.path.isfile(path):
        if os.path.exists(Path(folder) / "journal.jsonl"):
            raise AnalysisError(f"{folder} is not finished; run analyze again, it goes on where it stopped")
        raise AnalysisError(f"{folder} holds no analysis; make one with: infoq-onnx analyze MODEL --calib IMAGES")
    try:
        text = path.read_text(encoding="utf-8")
        # first of all, for another schema has other fields, which is no damage
        if (schema := schema_of(text)) not in (None, SCHEMA_VERSION):
            raise AnalysisError(f"{path} has schema {schema}, expected {SCHEMA_VERSION}; run analyze again")
        analysis = from_json(Analysis, text)
    except (OSError, ValueError, RecursionError) as error:
        raise AnalysisError(f"{path} is damaged ({' '.join(str(error).split())}); run analyze again") from error
    try:
        changed = first_changed(Path(folder), CHECKSUMS)
    except FileNotFoundError as error:
        raise AnalysisError(f"{error.filename} is missing; run analyze again") from error
    except (OSError, ValueError) as error:
        raise AnalysisError(f"{Path(folder) / CHECKSUMS} is damaged; run analyze again") from error
    if changed is not None:
        raise AnalysisError(f"{Path(folder) / changed} was changed after it was written; run analyze again")
    return analysis


def find_analysis(folder: Path | str = ".") -> Path:
    """Return the newest finished analysis in a folder.

    Raises
    ------
    AnalysisError
        There is none.
    """
    found = [path.parent for path in Path(folder).glob("*.infoq/analysis.json")]
    if not found:
        if unfinished := sorted(path.parent for path in Path(folder).glob("*.infoq/journal.jsonl")):
            raise AnalysisError(f"{unfinished[0]} is not finished; run analyze again, it goes on where it stopped")
        raise AnalysisError(
            f"no finished analysis (*.infoq) in {Path(folder).resolve()}; make one with: "
            "infoq-onnx analyze MODEL --calib IMAGES"
        )
    return max(found, key=lambda path: ((path / "analysis.json").stat().st_mtime_ns, path.name))
