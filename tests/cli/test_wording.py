"""Messages of the library, in the words of the command line."""

from __future__ import annotations

import click
import pytest

from infoq_onnx.cli import main
from infoq_onnx.cli.wording import in_options
from infoq_onnx.errors import InfoQError, setting


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (f"{setting('samples')} 5: give at least 16", "--samples 5: give at least 16"),
        (
            f"drop {setting('pins')} and {setting('tables')}, or {setting('uniform_bits')}",
            "drop --pin and --budget, or --uniform",
        ),
        (
            f"{setting('trial_rounding')}, {setting('file_format')}, {setting('preprocessing')}",
            "--trial-rounding, --format, --preprocess",
        ),
        (f"make one with {setting('analyze')}", "make one with infoq-onnx analyze"),
        (f"{setting('avg_act_bits')} 1 cannot be met", "--avg-act-bits 1 cannot be met"),
        (f"criterion eagl has no options: drop {setting('debias')}", "criterion eagl has no options: drop --debias"),
        (f"criterion mine has only {setting('strength')}", "criterion mine has only `strength`"),
        # a name of the user's that looks like a setting
        (f"no layer is called `samples`; {setting('samples')} 5", "no layer is called `samples`; --samples 5"),
    ],
)
def test_settings_become_options_and_functions_commands(message: str, expected: str) -> None:
    with click.Context(main, info_name="infoq-onnx"):
        assert in_options(message) == expected
    # a library message by itself stays as it is
    assert in_options(message) == message


def test_programs_see_settings_in_backticks() -> None:
    error = InfoQError(f"{setting('samples')} 5: give at least 16")
    assert str(error) == "`samples` 5: give at least 16"
    assert error.marked != str(error)
