"""Criteria: how sensitive each unit is at each bit-width. One file each; other packages add theirs through the entry
point group ``infoq_onnx.criteria``.
"""

from __future__ import annotations

import dataclasses
from importlib.metadata import entry_points, version

from infoq_onnx.errors import SettingsError
from infoq_onnx.sensitivity.criteria.base import NEEDS, Context, Criterion, Need, Option, OptionValue, Scored, criterion
from infoq_onnx.sensitivity.criteria.eagl import eagl
from infoq_onnx.sensitivity.criteria.infoq import infoq
from infoq_onnx.sensitivity.criteria.kl import kl
from infoq_onnx.sensitivity.criteria.weight_error import weight_error

__all__ = [
    "CRITERIA",
    "ENTRY_POINT_GROUP",
    "NEEDS",
    "Context",
    "Criterion",
    "Need",
    "Option",
    "OptionValue",
    "Scored",
    "criterion",
    "get_criteria",
    "get_criterion",
]

ENTRY_POINT_GROUP = "infoq_onnx.criteria"

CRITERIA: dict[str, Criterion] = {one.name: one for one in (kl, infoq, eagl, weight_error)}


def get_criteria() -> dict[str, Criterion]:
    """Return every criterion by name, those of other installed packages included.

    Raises
    ------
    SettingsError
        Another package's criterion cannot be loaded, is none, or has the name of another.
    """
    ours = f"infoq-onnx {version('infoq-onnx')}"
    found = {name: dataclasses.replace(one, package=ours) for name, one in CRITERIA.items()}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        where = f"criterion {entry.name!r} ({entry.value})"
        try:
            loaded = entry.load()
        except Exception as error:  # another package's code may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise SettingsError(f"{where} cannot be loaded: {reason}") from error
        if not isinstance(loaded, Criterion):
            raise SettingsError(f"{where} is no criterion: make one with infoq_onnx.sensitivity.criteria.criterion")
        if loaded.name != entry.name or loaded.name in found:
            raise SettingsError(
                f"{where} calls itself {loaded.name!r}: it needs its entry point's name, and one of its own"
            )
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
        found[loaded.name] = dataclasses.replace(loaded, package=package)
    return found


def get_criterion(name: str) -> Criterion:
    """Return one criterion.

    Raises
    ------
    SettingsError
        There is none of that name, or another package's cannot be loaded.
    """
    found = get_criteria()
    if name not in found:
        raise SettingsError(f"there is no criterion {name}; choose among {', '.join(found)}")
    return found[name]
