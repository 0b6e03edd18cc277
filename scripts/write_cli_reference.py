"""Write docs/cli.md: the help of every command, as click prints it 100 columns wide."""

from __future__ import annotations

from pathlib import Path

import click

from infoq_onnx.cli import main

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
WIDTH = 100


def reference() -> str:
    """Return the text of the reference."""
    parts = [
        "# Command line",
        "Written by `python scripts/write_cli_reference.py`; what each message means is in [errors.md](errors.md).",
    ]
    top = _context(main, "infoq-onnx", None)
    for context in (top, *(_context(command, name, top) for name, command in main.commands.items())):
        parts += [f"## {context.command_path}", f"```text\n{context.get_help()}\n```"]
    return "\n\n".join(parts) + "\n"


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    settings = {**main.context_settings, "max_content_width": WIDTH, "terminal_width": WIDTH}
    return click.Context(command, info_name=name, parent=parent, **settings)


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
