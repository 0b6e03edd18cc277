"""infoq-onnx criteria"""

from __future__ import annotations

import click


@click.command(
    short_help="List the criteria that bits can be chosen by.",
    epilog="Example: infoq-onnx criteria --json",
)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON instead of a table.")
def criteria(as_json: bool) -> None:
    """List the criteria that bits can be chosen by, those of other installed packages included.

    For each: what it needs, how often the images go through the network for it, its own options, and where it is
    published.
    """
    from infoq_onnx import pipeline
    from infoq_onnx.cli.results import show
    from infoq_onnx.report import tables
    from infoq_onnx.schema import CriteriaList, to_json

    found = pipeline.criteria()
    show(to_json(CriteriaList(found)) if as_json else tables.criteria(found))
