"""Versions of the files that outlive a run, and how older ones become today's.

Each kind of file has a version of its own. A file of an older version is upgraded step by step, by one function a
version; a file of a newer one, or with a field that nobody here knows, is told as what it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from infoq_onnx.schema.allocation import Allocation
from infoq_onnx.schema.analysis import Analysis, ScoreTable
from infoq_onnx.schema.json_form import from_object

ANALYSIS_VERSION = 3
ALLOCATION_VERSION = 3
SCORES_VERSION = 1

Fields = dict[str, Any]
Upgrade = Callable[[Fields], Fields]
T = TypeVar("T", Analysis, Allocation, ScoreTable)


class OtherVersion(Exception):  # noqa: N818 - not an error of this package's tree: readers turn it into one
    """A file of a version that cannot be read here; the message is a clause such as "has schema 9, …"."""


def read(cls: type[T], text: str) -> T:
    """Rebuild what a versioned file holds.

    Raises
    ------
    OtherVersion
        Newer than this version of the tool, or older than any it can upgrade.
    UnknownField
        A field that this version of the tool does not know.
    ValueError
        Damaged otherwise.
    """
    value = json.loads(text)
    known, upgrades = _KINDS[cls]
    found = value.get("schema") if isinstance(value, dict) else None
    if isinstance(found, int):
        if found > known:
            raise OtherVersion(f"has schema {found}, and this infoq-onnx knows up to {known}: update infoq-onnx")
        while found < known:
            if found not in upgrades:
                raise OtherVersion(f"has schema {found}, which is too old: make it again")
            try:
                value = {**upgrades[found](value), "schema": found + 1}
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"schema {found}: a field is missing, or is of another kind ({error})") from error
            found += 1
    return from_object(cls, value)


def _analysis_2(old: Fields) -> Fields:
    """Scores became files of their own; a trial became a set of changes; observers are selected by their criterion."""
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


def _allocation_2(old: Fields) -> Fields:
    """Scores became files of their own, with a hash of their own."""
    return {**old, "scores_sha256": ""}


_KINDS: dict[Any, tuple[int, Mapping[int, Upgrade]]] = {
    Analysis: (ANALYSIS_VERSION, {2: _analysis_2}),
    Allocation: (ALLOCATION_VERSION, {2: _allocation_2}),
    ScoreTable: (SCORES_VERSION, {}),
}
