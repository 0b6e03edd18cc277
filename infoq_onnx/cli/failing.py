"""How commands fail: one line on stderr and an exit code, for every error of `infoq_onnx.errors`."""

from __future__ import annotations

import sys
from typing import Any

import click

from infoq_onnx.errors import InfoQError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class InfoQGroup(click.Group):
    """A group of commands whose errors are shown as one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; turn an InfoQError into a line and an exit code."""
        try:
            return super().invoke(ctx)
        except InfoQError as error:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("stopped; analyze goes on where it was when it is started again", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            # the reader of our output (head, less) has gone: nothing is wrong, and nothing more can be said
            sys.stderr.close()
            ctx.exit(1)
