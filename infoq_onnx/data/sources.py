"""Find samples in class folders, a flat folder, a list file, or an array file.

================  ===================================================  ==============================================
kind              content                                              labels
================  ===================================================  ==============================================
class folders     ``cat/1.png``, ``dog/2.png``, any depth below        position of the folder's name in the classes
                                                                       file, or in the sorted list of folders
flat folder       ``1.png``, ``2.png``                                 none
list file         .txt or .csv with lines ``path,label`` or ``path``   an index, or a name in the classes file
array             .npy, [N, ...]                                       none
arrays            .npz with ``x`` or ``images``                        ``y`` or ``labels``, if present
================  ===================================================  ==============================================

Opening a source reads file names and arrays, but no images.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infoq_onnx.errors import DataError, setting

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".tif", ".tiff"})
LIST_SUFFIXES = frozenset({".txt", ".csv"})

_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found"})

# what numpy raises for files that are damaged, headers that do not parse among them
_NOT_ARRAYS = (
    *(OSError, ValueError, EOFError, RuntimeError, MemoryError, SyntaxError, TypeError, KeyError, OverflowError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)

_NAMED = 3  # how many names an error message lists
_HEADERS = frozenset({"path", "file", "filename", "image"})
_DEEPEST = 50  # folders below a class folder; paths have a largest length


@dataclass(frozen=True, eq=False)
class Source:
    """Samples in a fixed order, either image files (not read yet) or one array."""

    path: Path
    classes_path: Path | None
    files: tuple[Path, ...]
    """The image files; empty if the samples are in `array`."""
    array: npt.NDArray[Any] | None
    """[N, ...], integers or floats; memory-mapped for .npy. None if the samples are in `files`."""
    labels: npt.NDArray[np.int64] | None
    """[N], class indices; None without labels."""
    class_names: tuple[str, ...] | None
    """Class names in label order; None if unknown."""
    numbers: tuple[int, ...] = ()
    """Names of the class folders, where all of them are numbers, in the order of the labels."""
    ignored: tuple[str, ...] = ()
    """Folders that are no classes, as they hold no image."""

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.files) if self.array is None else len(self.array)


def open_source(path: Path, classes: Path | None = None) -> Source:
    """Find the samples under `path`.

    Parameters
    ----------
    path
        A folder, a .txt or .csv list, a .npy or a .npz file.
    classes
        A text file with one class name per line, in label order.

    Returns
    -------
    Source

    Raises
    ------
    DataError
        `path` or `classes` does not exist, holds no usable samples, or has invalid labels. The message names the
        culprit.
    """
    path = Path(path)
    names = _read_classes(Path(classes)) if classes is not None else None
    classes_path = Path(classes) if classes is not None else None
    if not os.path.exists(path):
        raise DataError(f"no such file or folder: {path}; check the path")
    suffix = path.suffix.lower()
    if os.path.isdir(path):
        return _from_folder(path, classes_path, names)
    if not os.path.isfile(path):
        # opening a pipe would block forever
        raise DataError(
            f"{path} is no regular file: give a folder of images, a list (.txt, .csv) or arrays (.npy, .npz)"
        )
    if suffix in LIST_SUFFIXES:
        return _from_list(path, classes_path, names)
    if suffix == ".npy":
        return _from_npy(path, classes_path, names)
    if suffix == ".npz":
        return _from_npz(path, classes_path, names)
    raise DataError(f"{path} is no data set: expected a folder of images, a list (.txt, .csv) or arrays (.npy, .npz)")


def with_classes(source: Source, count: int) -> Source:
    """Make the labels of a source those of a model with `count` classes.

    Class folders whose names are numbers are the classes of these numbers, all of them present or not. If they do not
    start at 0, as in 1 … `count`, the labels are their ranks, and every class needs a folder.

    Parameters
    ----------
    source
        The source.
    count
        Number of classes of the model.

    Raises
    ------
    DataError
        The number of class names or class folders differs from `count`, or a label is `count` or more.
    """
    if source.numbers and source.labels is not None and max(source.numbers) < count:
        numbered = np.array(source.numbers, dtype=np.int64)[source.labels]
        return dataclasses.replace(source, labels=numbered, class_names=None)
    if source.class_names is not None and len(source.class_names) != count:
        named = len(source.class_names)
        if source.classes_path is None:
            stray = f" ({_some(source.class_names)})" if named > count else ""
            raise DataError(
                f"{source.path} has {named} class folders{stray} but the model has {count} classes: name all "
                f"{count} in label order in a file, with {setting('classes')}, or name the folders by their numbers, 0 "
                "and up"
            )
        raise DataError(
            f"{source.classes_path} names {named} classes but the model has {count}: give one a line, in label order"
        )
    if source.labels is not None and (wrong := np.flatnonzero(source.labels >= count)).size:
        first = int(wrong[0])
        raise DataError(
            f"{source.path}: sample {first} has label {source.labels[first]} but the model has {count} classes "
            f"(0 to {count - 1}): correct the labels, or give the model that they belong to"
        )
    return source


# -------------------------------------------------------------------------------------------------------------- folders


def _from_folder(path: Path, classes_path: Path | None, names: tuple[str, ...] | None) -> Source:
    flat: list[Path] = []
    classes: dict[str, list[Path]] = {}
    ignored: list[str] = []
    others = 0
    for entry in _entries(path):
        if _is_folder(entry) and not path.resolve().is_relative_to(entry.resolve()):
            images, more = _images_below(entry)
            others += more
            if images:
                classes[entry.name] = images
            else:
                ignored.append(entry.name)
        elif _is_image(entry):
            flat.append(entry)
        else:
            others += 1
    if flat and classes:
        raise DataError(f"{path} holds both images and folders of images: keep one of them, or write a list file")
    if flat:
        return Source(path, classes_path, tuple(flat), None, None, names, ignored=tuple(ignored))
    if not classes:
        what = f"{len(ignored)} folder{'s' * (len(ignored) > 1)} but no image" if ignored else "no image"
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{path} holds {what} ({others} other files): give one with {suffixes}")
    if names is not None and (unknown := sorted(set(classes) - set(names))):
        raise DataError(
            f"{path}: the folders {_some(unknown)} are not named in {classes_path}: name every folder there"
        )
    ordered = sorted(classes)
    numbers: tuple[int, ...] = ()
    if names is None and all(re.fullmatch(r"[0-9]{1,9}", name) for name in classes):
        ordered = sorted(classes, key=lambda name: (int(name), name))
        numbers = tuple(int(name) for name in ordered)
        for one, other in itertools.pairwise(ordered):
            if int(one) == int(other):
                raise DataError(f"{path}: the folders {one} and {other} are the same class: put their images together")
    names = names or tuple(ordered)
    index = {name: label for label, name in enumerate(names)}
    files = tuple(file for name in ordered for file in classes[name])
    labels = np.repeat([index[name] for name in ordered], [len(classes[name]) for name in ordered]).astype(np.int64)
    return Source(path, classes_path, files, None, labels, names, numbers, tuple(ignored))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error


def _images_below(folder: Path) -> tuple[list[Path], int]:
    """Return the sorted images at any depth below a class folder, and the number of other files.

    Links to folders are not followed.
    """
    images: list[Path] = []
    others = 0
    depth = str(folder).count(os.sep)

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    for parent, subfolders, files in os.walk(folder, onerror=refuse):
        if parent.count(os.sep) - depth > _DEEPEST:
            raise DataError(f"{folder} has folders in folders, more than {_DEEPEST} deep: move the images up")
        subfolders[:] = [name for name in subfolders if not _is_hidden(name)]
        for name in files:
            if _is_image(file := Path(parent, name)):
                images.append(file)
            else:
                others += 1
    return sorted(images), others


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path) and not _is_hidden(path.name)


def _is_hidden(name: str) -> bool:
    """Whether a folder belongs to the system: hidden, or made by macOS' Archive Utility, Synology's DSM or Windows."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def _is_image(path: Path) -> bool:
    # a dangling link counts as an image that the user expects to exist; loading reports what is wrong with it
    return (
        path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and (os.path.isfile(path) or (os.path.islink(path) and not os.path.isdir(path)))
    )


# ---------------------------------------------------------------------------------------------------------------- lists


def _from_list(path: Path, classes_path: Path | None, names: tuple[str, ...] | None) -> Source:
    files: list[Path] = []
    labels: list[int] = []
    index = {name: label for label, name in enumerate(names or ())}
    folder = os.path.dirname(path)
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            (fields,) = csv.reader([line], strict=True)
        except csv.Error as error:
            raise DataError(f"{where}: {error}; expected path,label or path") from error
        fields = [field.strip() for field in fields]
        if len(fields) > 2 or not all(fields):
            raise DataError(f"{where}: expected path,label or path, found {line.strip()!r}")
        # os.path, because a list can have a million lines
        file = os.path.join(folder, fields[0])
        if not os.path.isfile(file):
            header = " (a list has no header line)" if number == 1 and fields[0].lower() in _HEADERS else ""
            raise DataError(f"{where}: no such file: {Path(file)}{header}; paths are relative to the list: correct it")
        if files and (len(fields) == 2) != bool(labels):
            here, before = ("a", "none") if len(fields) == 2 else ("no", "one")
            raise DataError(f"{where} has {here} label but the lines before have {before}: label all lines or none")
        files.append(Path(file))
        if len(fields) == 2:
            labels.append(_label(fields[1], index, where, classes_path))
    if not files:
        raise DataError(f"{path} lists no file: expected lines of path,label or path")
    array = np.array(labels, np.int64) if labels else None
    return Source(path, classes_path, tuple(files), None, array, names)


def _label(text: str, index: dict[str, int], where: str, classes_path: Path | None) -> int:
    if text in index:
        return index[text]
    if not re.fullmatch(r"[0-9]{1,9}", text):
        unnamed = f"an index (names need {setting('classes')})"
        known = f"a name in {classes_path}, nor an index" if classes_path else unnamed
        raise DataError(f"{where}: the label {text!r} is not {known}")
    if index and int(text) >= len(index):
        raise DataError(f"{where}: the label {text} is out of range: {classes_path} names {len(index)} classes")
    return int(text)


def _read_classes(path: Path) -> tuple[str, ...]:
    if not os.path.isfile(path):
        what = "not a text file" if os.path.exists(path) else "not there"
        raise DataError(f"{setting('classes')} {path} is {what}: give a file with one class name a line")
    names = [line.strip() for line in _lines(path)]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise DataError(f"the classes file {path} is empty: expected one name a line, in label order")
    if "" in names:
        raise DataError(f"{path} line {names.index('') + 1} is blank: expected one class name a line, in label order")
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if name in first:
            raise DataError(f"{path} line {number}: {name!r} was already named in line {first[name]}")
        first[name] = number
    return tuple(names)


def _lines(path: Path) -> list[str]:
    try:
        # utf-8-sig, because spreadsheet programs write a byte order mark
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start} cannot be decoded") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return text.split("\n")


# --------------------------------------------------------------------------------------------------------------- arrays


def _from_npy(path: Path, classes_path: Path | None, names: tuple[str, ...] | None) -> Source:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except _NOT_ARRAYS as error:
        raise DataError(
            f"{path} is not a numeric .npy array ({_reason(error)}); save it again with numpy.save"
        ) from error
    return Source(path, classes_path, (), _checked(array, str(path)), None, names)


def _from_npz(path: Path, classes_path: Path | None, names: tuple[str, ...] | None) -> Source:
    try:
        # opened here, because numpy does not close a file that is not an archive
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(f"{path} holds a single array: name it .npy")
            keys = list(archive.files)
            label_key = next((key for key in ("y", "labels") if key in keys), None)
            others = [key for key in keys if key not in ("y", "labels")]
            key = next((key for key in ("x", "images") if key in keys), others[0] if len(others) == 1 else None)
            if key is None:
                raise DataError(f"{path} holds {_some(keys)}: name the samples x and the labels y")
            _check_memory(archive.zip, path)
            # asarray, because numpy returns a member that is not .npy as bytes
            array = _checked(np.asarray(archive[key]), f"{key!r} of {path}")
            labels = np.asarray(archive[label_key]) if label_key is not None else None
    except _NOT_ARRAYS as error:
        raise DataError(
            f"{path} is not an archive of numeric arrays ({_reason(error)}); save it again with numpy.savez"
        ) from error
    if labels is not None:
        labels = _checked_labels(labels, len(array), names, classes_path, f"{label_key!r} of {path}")
    return Source(path, classes_path, (), array, labels, names)


def _check_memory(archive: zipfile.ZipFile, path: Path) -> None:
    unpacked = max(member.file_size for member in archive.infolist())
    if unpacked > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2:
        raise DataError(
            f"{path} takes {unpacked / 1e9:.1f} GB unpacked, more than half of this machine's memory: save it as .npy, "
            "which is read piece by piece"
        )


def _checked(array: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    if array.dtype.kind not in "uif":
        raise DataError(f"{where} holds {array.dtype} values: expected integers or floats")
    if array.ndim < 2 or array.size == 0:
        raise DataError(f"{where} has shape {array.shape}: expected samples along the first axis, [N, ...], and some")
    return array


def _checked_labels(
    labels: npt.NDArray[Any], count: int, names: tuple[str, ...] | None, classes_path: Path | None, where: str
) -> npt.NDArray[np.int64]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "ui" or labels.ndim != 1:
        raise DataError(f"{where} is {labels.dtype} of shape {labels.shape}: expected one integer a sample, ({count},)")
    if len(labels) != count:
        raise DataError(f"{where} has {len(labels)} labels for {count} samples: expected as many of both")
    limit = len(names) if names is not None else np.iinfo(np.int64).max
    if (wrong := np.flatnonzero((labels < 0) | (labels >= limit))).size:
        expected = f"0 to {limit - 1}, as {classes_path} names {limit} classes" if names is not None else "0 or more"
        raise DataError(f"{where}: sample {wrong[0]} has label {labels[wrong[0]]}, out of range: expected {expected}")
    return labels.astype(np.int64)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (", ".join(map(repr, names[:_NAMED])) + more) or "nothing"


def _reason(error: BaseException) -> str:
    """Say why numpy cannot read a file; what numpy says of bytes that are not its own is about pickle and magic."""
    text = " ".join(str(error).split())
    if re.search("pickle|magic", text):
        return "it holds Python objects, or is not in numpy's format"
    return text or type(error).__name__
