"""Print results on stdout: tables, text and JSON."""

from __future__ import annotations

import io
import sys

import click
from rich.console import Console, RenderableType

from infoq_onnx.cli.failing import discard_stdout
from infoq_onnx.errors import OutputError
from infoq_onnx.files import advice_on


def show(result: RenderableType) -> None:
    """Print a table, or text as it is, on stdout.

    Raises
    ------
    OutputError
        Stdout is a file on a full disk, or the like.
    """
    # a sign that the terminal's encoding lacks, in the name of a layer or a file, is no reason to fail
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        if isinstance(result, str):
            click.echo(result.removesuffix("\n"))
        else:
            _stdout().print(result)
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        raise OutputError(
            f"cannot write the result to stdout: {error.strerror or error}; {advice_on(error)}"
        ) from error


def _stdout() -> Console:
    # names of layers may look like markup; and without a terminal nothing should be cut
    width = None if sys.stdout.isatty() else 200
    return Console(width=width, markup=False, emoji=False, highlight=False)
