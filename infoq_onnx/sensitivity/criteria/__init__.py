"""Criteria: how the trials of a sweep become scores. One file each; more may come from the entry point group
``infoq_onnx.criteria``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Protocol

from infoq_onnx.errors import SettingsError
from infoq_onnx.schema import Observer, Score, SweepSettings, Trial
from infoq_onnx.sensitivity.criteria.infoq import infoq
from infoq_onnx.sensitivity.criteria.kl import kl

ENTRY_POINT_GROUP = "infoq_onnx.criteria"


class Criterion(Protocol):
    """Turns what a sweep measured into scores: higher is more sensitive."""

    def __call__(
        self, trials: Sequence[Trial], observers: Sequence[Observer], settings: SweepSettings
    ) -> tuple[Score, ...]:
        """Score every trial, in the order of `trials`."""


criteria: dict[str, Criterion] = {"infoq": infoq, "kl": kl}


def get_criteria() -> dict[str, Criterion]:
    """Return every criterion by name, those of other installed packages included.

    Raises
    ------
    SettingsError
        Another package's criterion cannot be loaded.
    """
    found = dict(criteria)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            found[entry.name] = entry.load()
        except (ImportError, AttributeError) as error:
            raise SettingsError(f"criterion {entry.name!r} ({entry.value}) cannot be loaded: {error}") from error
    return found
