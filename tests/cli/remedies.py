"""The remedy that each message of docs/errors.md names, followed: `REMEDIES`."""

from __future__ import annotations

from collections.abc import Callable

from tests.cli.remedies_data import DATA
from tests.cli.remedies_models import MODELS
from tests.cli.remedies_results import RESULTS
from tests.cli.situations import Place

REMEDIES: dict[str, Callable[[Place], str]] = {**MODELS, **DATA, **RESULTS}
"""Situation → a function that follows the remedy in the folder and returns the command that then succeeds."""
