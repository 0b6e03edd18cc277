"""Failure of commands: one line on stderr and an exit code, for our own errors, lack of memory and wrong usage."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import click

from infoq_onnx.cli.exit_codes import FAILED, INTERRUPTED, exit_code
from infoq_onnx.cli.wording import in_options
from infoq_onnx.errors import InfoQError, enumerated
from infoq_onnx.files import advice_on

_LESS_MEMORY = {
    "--memory": "say with --memory how much there is",
    "--samples": "give fewer --samples",
    "--batch": "give a smaller --batch",
    "--workers": "give fewer --workers",
}
"""Options that reduce the memory of a command, with the advice to the user."""


class InfoQGroup(click.Group):
    """A group of commands that lists them in the order they were added, and prints errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """List the commands in the order of use."""
        return list(self.commands)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line. Nothing is written to streams that are closed."""
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:
                # takes the free descriptor, too, so that no other file gets it and with it what is printed
                setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - stays open
        try:
            return super().main(*args, **extra)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # help and version are printed by click, perhaps to a file on a full disk
            discard_stdout()
            click.echo(f"error: cannot write: {error.strerror}; {advice_on(error)}", err=True)
            sys.exit(FAILED)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and turn an error into one line and an exit code."""
        try:
            return super().invoke(ctx)
        except InfoQError as error:
            _fail(ctx, error.marked, exit_code(error))
        except MemoryError as error:
            _fail(ctx, _out_of_memory(error, self.commands[str(ctx.invoked_subcommand)]), FAILED)
        except click.UsageError as error:
            used = (error.ctx or ctx).command_path
            _fail(ctx, f"{error.format_message().rstrip('.')}; see {used} --help", error.exit_code)
        except (KeyboardInterrupt, SystemError) as error:
            # an interrupted call of a compiled kernel raises a SystemError whose cause is the KeyboardInterrupt
            if not _interrupted(error):
                raise
            goes_on = (
                "; the same command goes on where it was" if ctx.invoked_subcommand in ("analyze", "finetune") else ""
            )
            click.echo(f"stopped{goes_on}", err=True)
            ctx.exit(INTERRUPTED)


def _out_of_memory(error: MemoryError, command: click.Command) -> str:
    """Return a message with the requested memory, if known, and the options of the command that reduce it."""
    known = {option for parameter in command.params for option in parameter.opts}
    ways = [way for option, way in _LESS_MEMORY.items() if option in known]
    ways += ["use a machine that has more", *(() if ways else ("export the model for smaller images",))]
    advice = enumerated(ways, "or")
    what = f" ({' '.join(str(error).split())})" if str(error) else ""
    return f"there is not enough memory{what}; {advice}"


def _fail(ctx: click.Context, message: str, code: int) -> None:
    click.echo(f"error: {in_options(' '.join(line.strip() for line in message.splitlines()))}", err=True)
    ctx.exit(code)


def discard_stdout() -> None:
    """Send stdout to nowhere: what cannot be written would be tried again, and complained about, when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupted(error: BaseException | None) -> bool:
    """Return whether Ctrl-C is in the chain of causes of an error."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
