"""Sensitivity criteria: how much the network suffers when one unit gets fewer bits.

Each criterion has a file of its own. Other packages register criteria through the entry point group
``infoq_onnx.criteria``.
"""

from __future__ import annotations

import dataclasses
from importlib.metadata import entry_points, version

from infoq_onnx.errors import SettingsError, setting
from infoq_onnx.sensitivity.criteria.base import NEEDS, Context, Criterion, Need, Option, OptionValue, Scored, criterion
from infoq_onnx.sensitivity.criteria.eagl import eagl
from infoq_onnx.sensitivity.criteria.infoq import infoq
from infoq_onnx.sensitivity.criteria.kl import kl
from infoq_onnx.sensitivity.criteria.pooled import infoq_pooled, kl_pooled
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

CRITERIA: dict[str, Criterion] = {one.name: one for one in (kl, kl_pooled, infoq, infoq_pooled, eagl, weight_error)}


def get_criteria() -> dict[str, Criterion]:
    """Return every criterion by name, including those of other installed packages.

    Returns
    -------
    dict of str to Criterion

    Raises
    ------
    SettingsError
        The criterion of another package cannot be loaded, is not a `Criterion`, differs in name from its entry point,
        or has a name that is already taken.
    """
    ours = f"infoq-onnx {version('infoq-onnx')}"
    found = {name: dataclasses.replace(one, package=ours) for name, one in CRITERIA.items()}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        where = f"criterion {entry.name!r} ({entry.value})"
        try:
            loaded = entry.load()
        except Exception as error:  # the code of another package can raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise SettingsError(f"{where} cannot be loaded: {reason}; repair or uninstall its package") from error
        if not isinstance(loaded, Criterion):
            raise SettingsError(f"{where} is not a criterion: make one with infoq_onnx.sensitivity.criteria.criterion")
        if loaded.name != entry.name or loaded.name in found:
            raise SettingsError(
                f"{where} calls itself {loaded.name!r}: it needs its entry point's name, and one of its own"
            )
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
        found[loaded.name] = dataclasses.replace(loaded, package=package)
    return found


def get_criterion(name: str) -> Criterion:
    """Return the criterion of a given name.

    Raises
    ------
    SettingsError
        No criterion has this name, or the criterion of another package cannot be loaded.
    """
    found = get_criteria()
    if name not in found:
        raise SettingsError(f"{setting('criterion')} {name or repr(name)}: choose among {', '.join(found)}")
    return found[name]
