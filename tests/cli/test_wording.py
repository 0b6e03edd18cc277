"""Messages of the library in the words of the command line."""

from __future__ import annotations

import click
import pytest

from infoq_onnx.cli import main
from infoq_onnx.cli.wording import in_options


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("`samples` 5: give at least 16", "--samples 5: give at least 16"),
        ("drop `pins` and `tables`, or `uniform_bits`", "drop --pin and --budget, or --uniform"),
        ("`trial_rounding`, `file_format`, `preprocessing`", "--trial-rounding, --format, --preprocess"),
        ("make one with `analyze`", "make one with infoq-onnx analyze"),
        ("`avg_act_bits` 1 cannot be met", "--avg-act-bits 1 cannot be met"),
        ("a layer called `conv1`", "a layer called `conv1`"),
    ],
)
def test_settings_become_options_and_functions_commands(message: str, expected: str) -> None:
    with click.Context(main, info_name="infoq-onnx"):
        assert in_options(message) == expected
    # a library message by itself stays as it is
    assert in_options(message) == message
