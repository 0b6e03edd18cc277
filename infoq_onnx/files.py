"""Writing whole files or none, and hashing them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from infoq_onnx.errors import OutputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` when the block ends well, remove it when it raises.

    A reader of `path` therefore sees the old file or the whole new one, whatever happens in between.

    Raises
    ------
    OutputError
        `path` is a folder, its folder does not exist or cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        yield temporary
        # mkstemp makes private files; give the result the permissions that open() would have given it
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def clear_leftovers(folder: Path, names: Sequence[str]) -> None:
    """Remove what processes that were killed while they wrote these files have left beside them."""
    for name in names:
        for left in folder.glob(f".{name}.*"):
            left.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Make sure that a file can be written, before hours are spent on what goes into it.

    Raises
    ------
    OutputError
        As `replacing` would.
    """
    _beside(Path(path)).unlink()


def _beside(path: Path) -> Path:
    """Make an empty file with a temporary name beside `path`."""
    if os.path.isdir(path):
        raise OutputError(f"cannot write {path}: it is a folder; choose another name with -o")
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another place with -o") from error
    os.close(descriptor)
    return Path(name)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_checksums(folder: Path, names: Sequence[str], to: str) -> None:
    """Write the SHA-256 of some files of a folder to the file `to` beside them, as sha256sum does."""
    write_text(folder / to, "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names))


def first_changed(folder: Path, checksums: str) -> str | None:
    """Return the first file that is not as `write_checksums` found it; None when all are.

    Raises
    ------
    OSError, ValueError
        The checksums or a file cannot be read.
    """
    lines = (folder / checksums).read_text(encoding="utf-8").splitlines()
    if not lines:
        raise ValueError(f"{checksums} is empty")
    for line in lines:
        digest, name = line.split("  ", 1)
        if sha256_of(folder / name) != digest:
            return name
    return None


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_text(text: str) -> str:
    """Hex SHA-256 of a text in UTF-8: that of the file that `write_text` makes of it."""
    return hashlib.sha256(text.encode()).hexdigest()
