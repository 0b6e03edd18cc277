"""The remedy that messages of docs/errors.md name, followed: `REMEDIES`."""

from __future__ import annotations

from collections.abc import Callable

from tests.cli.remedies_data import DATA
from tests.cli.situations import Place

REMEDIES: dict[str, Callable[[Place], str]] = {**DATA}
"""Situation → a function that follows the remedy in the folder and returns the command that then succeeds."""
