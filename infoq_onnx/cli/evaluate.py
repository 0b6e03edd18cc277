"""infoq-onnx evaluate"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from infoq_onnx.cli.options import FilePath, Whole, data_options, preprocessing_of


@click.command(
    short_help="Measure a model: accuracy, file size and latency.",
    epilog="Example: infoq-onnx evaluate small.onnx --data test/ --against model.onnx",
)
@click.argument("model", type=FilePath())
@click.option(
    "--data",
    required=True,
    type=FilePath(),
    help="Test images, as --calib of analyze; top-1 and top-5 need labels.",
)
@click.option("--against", type=FilePath(), help="Another model to compare with, image by image.")
@data_options
@click.option("--samples", type=Whole(min=1), help="Maximum number of images [all].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def evaluate(model: Path, as_json: bool, **options: Any) -> None:
    """Measure MODEL, quantized or not: top-1, top-5, agreement, file size and median latency.

    A model that allocate wrote knows its preprocessing; give it for any other.
    """
    preprocessing = preprocessing_of(options)
    from infoq_onnx import pipeline
    from infoq_onnx.cli.progress_bar import ConsoleReporter
    from infoq_onnx.cli.results import show
    from infoq_onnx.report import tables
    from infoq_onnx.schema import to_json

    with ConsoleReporter() as reporter:
        result = pipeline.evaluate(
            model, options.pop("data"), preprocessing=preprocessing, reporter=reporter, **options
        )
    show(to_json(result) if as_json else tables.evaluation(result, str(model), options["against"]))
