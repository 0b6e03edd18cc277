"""Exit codes of the command line."""

from __future__ import annotations

from infoq_onnx.errors import InfeasibleBudgetError, InfoQError, SettingsError, VerificationError

FAILED = 1
"""Any other error, and a failed `lint --strict`."""
WRONG_USAGE = 2
"""An option does not exist, or a value is invalid. click also uses this code."""
INFEASIBLE = 3
"""No allocation meets the bounds."""
NOT_VERIFIED = 4
"""The written model did not compute what was simulated."""
INTERRUPTED = 130
"""Ctrl-C, with the exit code that shells use."""

_BY_ERROR: dict[type[InfoQError], int] = {
    SettingsError: WRONG_USAGE,
    InfeasibleBudgetError: INFEASIBLE,
    VerificationError: NOT_VERIFIED,
}


def exit_code(error: InfoQError) -> int:
    """Return the exit code of an error."""
    return next((code for kind, code in _BY_ERROR.items() if isinstance(error, kind)), FAILED)
