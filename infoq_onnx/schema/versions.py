"""Versions of the stored files, and upgrades from older versions.

Each kind of file has its own version. A file of an older version is upgraded step by step, with one function per
version. A file of a newer version, or with an unknown field, is rejected with an error that names the cause.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from infoq_onnx.schema.allocation import Allocation
from infoq_onnx.schema.analysis import Analysis, ScoreTable
from infoq_onnx.schema.json_form import from_object

ANALYSIS_VERSION = 4
ALLOCATION_VERSION = 3
SCORES_VERSION = 2

Fields = dict[str, Any]
Upgrade = Callable[[Fields], Fields]
T = TypeVar("T", Analysis, Allocation, ScoreTable)


class OtherVersion(Exception):  # noqa: N818 - not an error of this package's tree: readers turn it into one
    """The file has a version that cannot be read. The message is a clause such as "has schema 9, …"."""


def read(cls: type[T], text: str) -> T:
    """Rebuild the contents of a versioned file.

    Parameters
    ----------
    cls : the class of the contents
    text : the JSON text of the file

    Returns
    -------
    T
        An instance of `cls`.

    Raises
    ------
    OtherVersion
        The file is newer than this version of the tool, or too old to be upgraded.
    UnknownField
        The file has a field that this version of the tool does not know.
    ValueError
        The file is damaged in another way.
    """
    value = json.loads(text)
    known, upgrades = _KINDS[cls]
    found = value.get("schema") if isinstance(value, dict) else None
    if isinstance(found, int):
        if found > known:
            raise OtherVersion(f"has schema {found}, and this infoq-onnx knows up to {known}: update infoq-onnx")
        while found < known:
            if found not in upgrades:
                raise OtherVersion(f"has schema {found}, which is too old: use the infoq-onnx that wrote it")
            try:
                value = {**upgrades[found](value), "schema": found + 1}
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"schema {found}: a field is missing, or is of another kind ({error})") from error
            found += 1
    return from_object(cls, value)


def _analysis_2(old: Fields) -> Fields:
    """Upgrade from version 2: scores move to separate files, trials have sets of changes, criteria select observers."""
    settings = {k: v for k, v in old["settings"].items() if k not in ("threshold", "one_over_b", "debias")}
    trials = [
        {
            "changes": [{"unit": {"kind": trial["kind"], "name": trial["unit"]}, "bits": trial["bits"]}],
            **{k: v for k, v in trial.items() if k not in ("kind", "unit", "bits")},
        }
        for trial in old["trials"]
    ]
    candidates = [{k: one[k] for k in ("tensor", "baseline_xl", "baseline_ly")} for one in old["observers"]]
    kept = {k: v for k, v in old.items() if k not in ("scores", "observers")}
    return {
        **kept,
        "fingerprint": "",
        "settings": {"observers": "selected", **settings},
        "candidates": candidates,
        "trials": trials,
    }


def _analysis_3(old: Fields) -> Fields:
    """Upgrade from version 3, whose trials always used all images and all bit-widths."""
    return {**old, "settings": {**old["settings"], "effort": "full"}}


def _allocation_2(old: Fields) -> Fields:
    """Upgrade from version 2: scores move to separate files, which have a hash."""
    return {**old, "scores_sha256": ""}


def _scores_1(old: Fields) -> Fields:
    """Upgrade from version 1, which has no hash of the scores themselves."""
    return {**old, "sha256": ""}


_KINDS: dict[Any, tuple[int, Mapping[int, Upgrade]]] = {
    Analysis: (ANALYSIS_VERSION, {2: _analysis_2, 3: _analysis_3}),
    Allocation: (ALLOCATION_VERSION, {2: _allocation_2}),
    ScoreTable: (SCORES_VERSION, {1: _scores_1}),
}
