"""infoq-onnx evaluate"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from infoq_onnx.cli.options import data_options, preprocessing_of


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="As --calib of analyze; with labels.")
@click.option("--against", type=click.Path(path_type=Path), help="Another model to compare with, image by image.")
@data_options
@click.option("--samples", type=click.IntRange(min=1), help="Images to use, at most [all].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def evaluate(model: Path, as_json: bool, **options: Any) -> None:
    r"""Measure MODEL, quantized or not: top-1, top-5, agreement, file size and median latency.

    A model that allocate wrote knows its preprocessing; give it for any other.

    \b
    Example: infoq-onnx evaluate small.onnx --data test/ --against model.onnx
    """
    preprocessing = preprocessing_of(options)
    from infoq_onnx import pipeline
    from infoq_onnx.cli.console import stdout
    from infoq_onnx.report import tables

    result = pipeline.evaluate(model, options.pop("data"), preprocessing=preprocessing, **options)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(result), indent=1, sort_keys=True))
        return
    stdout().print(tables.evaluation(result, str(model), options["against"]))
