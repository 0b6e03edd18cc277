"""The command line. Each command has its own file, which only parses options, calls the pipeline and prints."""

from __future__ import annotations

import click

from infoq_onnx.cli.allocate import allocate
from infoq_onnx.cli.analyze import analyze
from infoq_onnx.cli.criteria import criteria
from infoq_onnx.cli.demo import demo
from infoq_onnx.cli.evaluate import evaluate
from infoq_onnx.cli.failing import InfoQGroup
from infoq_onnx.cli.finetune import finetune
from infoq_onnx.cli.inspect import inspect
from infoq_onnx.cli.lint import lint
from infoq_onnx.cli.score import score


@click.group(
    cls=InfoQGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Once:                       infoq-onnx analyze model.onnx --calib images/ --preprocess imagenet
For each budget:            infoq-onnx allocate --bitops uniform:4/4 -o small.onnx
On images not used before:  infoq-onnx evaluate small.onnx --data test/ --against model.onnx""",
)
@click.version_option(package_name="infoq-onnx", prog_name="infoq-onnx")
def main() -> None:
    """Make an exported ONNX classifier small and cheap while it keeps its accuracy.

    Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 the model, the data or an output cannot be
    used, 2 an option makes no sense, 3 no choice of bits meets the budget, 4 the model written does not compute what
    was simulated, 130 stopped.
    """


for command in (demo, inspect, analyze, score, criteria, allocate, finetune, evaluate, lint):
    main.add_command(command)
