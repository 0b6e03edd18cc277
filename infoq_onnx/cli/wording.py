"""Translation of the library's messages to the options and commands of the command line.

The library names settings and functions in backticks: `trial_rounding`, `analyze`. The command line replaces them by
its options and commands: --trial-rounding, infoq-onnx analyze.
"""

from __future__ import annotations

import re

import click

_OTHER_NAMES = {"preprocessing": "--preprocess", "budget": "--budget"}
"""Library names that differ from the parameter names of the options."""


def in_options(message: str) -> str:
    """Replace settings in backticks by options, and functions in backticks by commands. Other backticks stay."""
    context = click.get_current_context(silent=True)
    group = None if context is None else context.find_root().command
    if not isinstance(group, click.Group):
        return message
    names = dict(_OTHER_NAMES)
    for name, command in group.commands.items():
        names[name] = f"infoq-onnx {name}"
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.name is not None:
                names[parameter.name] = max(parameter.opts, key=len)
    return re.sub(r"`(\w+)`", lambda found: names.get(found[1], found[0]), message)
