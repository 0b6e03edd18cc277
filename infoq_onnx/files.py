"""Write files atomically and hash them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from infoq_onnx.errors import OutputError

_CHECKSUM = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>.+)")
"""A line of sha256sum."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file in the folder of `path`, and rename it to `path` at the end of the block.

    If the block raises, the temporary file is removed. A reader of `path` therefore sees either the old file or the
    complete new file.

    Raises
    ------
    OutputError
        `path` is a folder, its folder does not exist or is not writable, or the disk is full.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        yield temporary
        # mkstemp creates private files: set the permissions that open() would have set
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; {advice_on(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def clear_leftovers(folder: Path, names: Sequence[str]) -> None:
    """Remove temporary files that killed processes left in a folder.

    Parameters
    ----------
    folder : the folder
    names : names of the files that the processes were writing with `replacing`
    """
    for name in names:
        for left in folder.glob(f".{name}.*"):
            left.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Check that a file can be written, before hours of work on its content.

    Raises
    ------
    OutputError
        See `replacing`.
    """
    _beside(Path(path)).unlink()


def _beside(path: Path) -> Path:
    """Create an empty temporary file in the folder of `path`."""
    if os.path.isdir(path):
        raise OutputError(f"cannot write {path}: it is a folder; move it away, or choose another name")
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; {advice_on(error)}") from error
    os.close(descriptor)
    return Path(name)


def advice_on(error: OSError) -> str:
    """Say what to do about a file that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "free some space, or choose another place" if full else "choose another place"


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, atomically; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_checksums(folder: Path, names: Sequence[str], to: str) -> None:
    """Write the SHA-256 of files to a file in the same folder, in the format of sha256sum.

    Parameters
    ----------
    folder : the folder
    names : names of the files to hash
    to : name of the file to write
    """
    write_text(folder / to, "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names))


def read_checksums(path: Path) -> dict[str, str]:
    """Read a file written by `write_checksums`.

    Parameters
    ----------
    path : the file

    Returns
    -------
    dict of str to str
        Name of a file → SHA-256.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        The file is malformed.
    """
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        parts = _CHECKSUM.fullmatch(line)
        if parts is None:
            raise ValueError(f"{path}: {line!r} is no checksum")
        found[parts["name"]] = parts["digest"]
    return found


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_text(text: str) -> str:
    """Return the hex SHA-256 of a text in UTF-8, which equals that of the file written by `write_text`."""
    return hashlib.sha256(text.encode()).hexdigest()
