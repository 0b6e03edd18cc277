"""infoq-onnx inspect"""

from __future__ import annotations

from pathlib import Path

import click

from infoq_onnx.cli.options import FilePath, logits_option


@click.command(
    short_help="Show what there is to quantize in a model.",
    epilog="Example: infoq-onnx inspect model.onnx",
)
@click.argument("model", type=FilePath())
@logits_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def inspect(model: Path, logits: str | None, as_json: bool) -> None:
    """Show what there is to quantize in MODEL: layers, parameters, MACs, and what was skipped and why."""
    from infoq_onnx import pipeline
    from infoq_onnx.cli.progress_bar import ConsoleReporter
    from infoq_onnx.cli.results import show
    from infoq_onnx.report import tables
    from infoq_onnx.schema import to_json

    with ConsoleReporter() as reporter:
        network = pipeline.inspect(model, logits=logits, reporter=reporter)
    if as_json:
        show(to_json(network))
        return
    for table in tables.network(network):
        show(table)
