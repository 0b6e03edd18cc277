"""infoq-onnx inspect"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def inspect(model: Path, as_json: bool) -> None:
    """Show what there is to quantize in MODEL: layers, parameters, MACs, and what was skipped and why."""
    from infoq_onnx import pipeline
    from infoq_onnx.cli.console import stdout
    from infoq_onnx.report import tables
    from infoq_onnx.schema import to_json

    network = pipeline.inspect(model)
    if as_json:
        click.echo(to_json(network), nl=False)
        return
    console = stdout()
    for table in tables.network(network):
        console.print(table)
