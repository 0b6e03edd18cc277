"""The command line: one file a command, which parses, calls the pipeline and prints. No logic lives here."""

from __future__ import annotations

import click

from infoq_onnx.cli.allocate import allocate
from infoq_onnx.cli.analyze import analyze
from infoq_onnx.cli.demo import demo
from infoq_onnx.cli.evaluate import evaluate
from infoq_onnx.cli.failing import InfoQGroup
from infoq_onnx.cli.inspect import inspect


@click.group(cls=InfoQGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="infoq-onnx", prog_name="infoq-onnx")
def main() -> None:
    r"""Make an exported ONNX classifier small and cheap while it keeps its accuracy.

    \b
    infoq-onnx analyze model.onnx --calib images/     once: how sensitive is each layer, at each bit-width?
    infoq-onnx allocate --bitops uniform:4/4          any number of budgets: bits per layer, and the model
    infoq-onnx evaluate out.onnx --data test/         accuracy, size and latency
    """


for command in (analyze, allocate, evaluate, inspect, demo):
    main.add_command(command)
