"""The library's messages in the words of the command line.

The library names settings and functions by `errors.setting`. The command line shows its options and commands in their
place: --trial-rounding for trial_rounding, infoq-onnx analyze for analyze.
"""

from __future__ import annotations

import contextlib
import re

import click

from infoq_onnx.errors import MARK, InfoQError

_OTHER_NAMES = {"preprocessing": "--preprocess", "budget": "--budget"}
"""Names of the library that are not those of an option's parameter."""


def in_options(message: str) -> str:
    """Replace the settings that a message names by options, and functions by commands; all other text stays."""
    context = click.get_current_context(silent=True)
    group = None if context is None else context.find_root().command
    if context is None or not isinstance(group, click.Group) or MARK not in message:
        return message
    names = dict(_OTHER_NAMES)
    for name, command in group.commands.items():
        names[name] = f"infoq-onnx {name}"
        parameters = command.params
        # the options of criteria, whose packages may be what the message is about
        with contextlib.suppress(InfoQError):
            parameters = command.get_params(context)
        for parameter in parameters:
            if isinstance(parameter, click.Option) and parameter.name is not None:
                own = parameter.name.removeprefix("option_")
                names.setdefault(own, max(parameter.opts, key=len))
                if parameter.secondary_opts:
                    names.setdefault(f"no_{own}", max(parameter.secondary_opts, key=len))
    return re.sub(rf"{MARK}`(\w+)`", lambda found: names.get(found[1], f"`{found[1]}`"), message)
