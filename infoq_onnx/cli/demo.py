"""infoq-onnx demo"""

from __future__ import annotations

from pathlib import Path

import click

from infoq_onnx.cli.options import FilePath


@click.command(short_help="Run the whole path, offline, on a small network.")
@click.option("-o", "--output", type=FilePath(), help="Keep the files in this folder [a temporary one].")
def demo(output: Path | None) -> None:
    """Run the whole path, offline, on a small network for handwritten digits that comes with the package."""
    from infoq_onnx import pipeline
    from infoq_onnx.cli.progress_bar import ConsoleReporter
    from infoq_onnx.cli.results import show
    from infoq_onnx.report import tables

    with ConsoleReporter() as reporter:
        rows = pipeline.demo(output, reporter=reporter)
    show(tables.demo(rows))
