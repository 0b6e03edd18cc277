"""Every row of docs/errors.md: what is printed, the exit code, and that nothing is left behind.

A row names a situation, which situations.py makes. In a message <word> stands for what differs from run to run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from infoq_onnx.cli import main
from tests.cli.process import run_process
from tests.cli.remedies import REMEDIES
from tests.cli.situations import SITUATIONS, Place

TABLE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    situation: str
    command: str
    message: str
    exit_code: int


def rows() -> list[Row]:
    found = []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 4 and cells[3].isdecimal():
            found.append(Row(cells[0], cells[1].strip("`"), cells[2].strip("`"), int(cells[3])))
    return found


ROWS = rows()

SHELL = (
    "a text file is named .onnx",
    "more than 1 % of the images are corrupt",
    "the folder is in use",
    "a budget below what 2 bits need",
    "bit-widths that are no numbers",
    "a command that does not exist",
    "models of different inputs",
)
"""Situations that are run as a process, too."""

AFTER_WORK = (
    "what it computes exceeds float32 when it is squared",
    "processes that run trials are killed",
    "memory ends while weights are rounded",
    "training improves nothing",
    "a checkpoint of another training",
    "labels that no image has",
    "a device that is not there",
)
"""Situations that are noticed when progress has been told."""


@pytest.fixture
def made(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with ExitStack() as held:
        yield Place(place, monkeypatch, held)


def listing(folder: Path) -> dict[str, bytes]:
    """What is in a folder, byte for byte."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def assert_told(row: Row, exit_code: int, stdout: str, stderr: str) -> None:
    wanted = re.sub("<[a-z]+>", r"\\S+", re.escape(row.message))
    assert stdout == ""
    assert stderr.endswith("\n")
    # there may be something to say of 8-bit weights first
    said = re.sub(r"\Aweights of .* layers get 7 bits: .*\n", "", stderr).removesuffix("\n")
    if row.situation in AFTER_WORK:
        said = said.splitlines()[-1]
        assert "Traceback" not in stderr
    assert re.fullmatch(f"error: {wanted}", said), stderr
    assert exit_code == row.exit_code


def test_every_row_has_its_situation() -> None:
    assert len(ROWS) >= 25
    assert sorted(row.situation for row in ROWS) == sorted(SITUATIONS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.situation)
def test_command_fails_as_documented(row: Row, made: Place) -> None:
    SITUATIONS[row.situation](made)
    before = listing(made.folder)
    result = CliRunner().invoke(main, shlex.split(row.command)[1:], prog_name="infoq-onnx")
    assert isinstance(result.exception, SystemExit), result.exception
    assert_told(row, result.exit_code, result.stdout, result.stderr)
    after = listing(made.folder)
    if row.situation in AFTER_WORK:
        # an unfinished analysis, to go on with
        after = {name: content for name, content in after.items() if not name.startswith("new.infoq")}
    assert after == before


@pytest.mark.parametrize("row", [row for row in ROWS if row.situation in REMEDIES], ids=lambda row: row.situation)
def test_its_remedy_works(row: Row, made: Place) -> None:
    SITUATIONS[row.situation](made)
    failed = CliRunner().invoke(main, shlex.split(row.command)[1:], prog_name="infoq-onnx")
    assert failed.exit_code == row.exit_code
    command = REMEDIES[row.situation](made)
    done = CliRunner().invoke(main, shlex.split(command)[1:], prog_name="infoq-onnx")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("row", [row for row in ROWS if row.situation in SHELL], ids=lambda row: row.situation)
def test_process_fails_as_documented(row: Row, made: Place) -> None:
    SITUATIONS[row.situation](made)
    before = listing(made.folder)
    result = run_process(*shlex.split(row.command)[1:])
    assert_told(row, result.returncode, result.stdout, result.stderr)
    assert listing(made.folder) == before
