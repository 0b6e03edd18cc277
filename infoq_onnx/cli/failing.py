"""How commands fail: one line on stderr and an exit code, for our own errors, want of memory and wrong usage."""

from __future__ import annotations

from typing import Any

import click

from infoq_onnx.cli.exit_codes import FAILED, INTERRUPTED, exit_code
from infoq_onnx.cli.wording import in_options
from infoq_onnx.errors import InfoQError

_LESS_MEMORY = {
    "--memory": "say with --memory how much there is",
    "--samples": "give fewer --samples",
    "--workers": "give fewer --workers",
}
"""Options that make a command take less."""


class InfoQGroup(click.Group):
    """A group of commands, listed in the order they were added, whose errors are shown as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Name the commands in the order of use."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; turn an error into a line and an exit code."""
        try:
            return super().invoke(ctx)
        except InfoQError as error:
            _fail(ctx, str(error), exit_code(error))
        except MemoryError as error:
            _fail(ctx, _out_of_memory(error, self.commands[str(ctx.invoked_subcommand)]), FAILED)
        except click.UsageError as error:
            used = (error.ctx or ctx).command_path
            _fail(ctx, f"{error.format_message().rstrip('.')}; see {used} --help", error.exit_code)
        except (KeyboardInterrupt, SystemError) as error:
            # a compiled kernel that is interrupted while it is called ends in a SystemError of that cause
            if not _interrupted(error):
                raise
            goes_on = "; the same command goes on where it was" if ctx.invoked_subcommand == "analyze" else ""
            click.echo(f"stopped{goes_on}", err=True)
            ctx.exit(INTERRUPTED)


def _out_of_memory(error: MemoryError, command: click.Command) -> str:
    """Say what was asked for, where that is known, and which options of the command make it less."""
    known = {option for parameter in command.params for option in parameter.opts}
    ways = [way for option, way in _LESS_MEMORY.items() if option in known]
    advice = ", ".join([*ways, f"{'or ' * bool(ways)}use a machine that has more"])
    what = f" ({' '.join(str(error).split())})" if str(error) else ""
    return f"there is not enough memory{what}; {advice}"


def _fail(ctx: click.Context, message: str, code: int) -> None:
    click.echo(f"error: {in_options(' '.join(line.strip() for line in message.splitlines()))}", err=True)
    ctx.exit(code)


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error, through however many others."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
