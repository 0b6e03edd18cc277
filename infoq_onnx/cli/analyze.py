"""infoq-onnx analyze"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from infoq_onnx.cli.options import BitList, FilePath, data_options, preprocessing_of


@click.command(
    short_help="Measure how sensitive every layer is, at every bit-width.",
    epilog="Example: infoq-onnx analyze model.onnx --calib images/ --preprocess imagenet",
)
@click.argument("model", type=FilePath())
@click.option(
    "--calib",
    required=True,
    type=FilePath(),
    help="Class folders, a flat folder, a list file (path,label), or .npy/.npz arrays. Labels are optional.",
)
@data_options
@click.option("--samples", type=click.IntRange(min=1), default=1000, show_default=True, help="Images to use, at most.")
@click.option("--bits", type=BitList(), default="2,3,4,5,6,7,8", show_default=True, help="Bit-widths to try.")
@click.option(
    "--encoder",
    default="pca",
    show_default=True,
    help="What stands for X: pca, self (the model's own features), dinov2, or an ONNX file.",
)
@click.option("--projections", type=int, default=128, show_default=True, help="Directions of the sliced estimates.")
@click.option("--neighbours", type=int, default=3, show_default=True, help="k of the estimators.")
@click.option("--threshold", type=float, default=0.70, show_default=True, help="Correlation that makes an observer.")
@click.option("--one-over-b/--no-one-over-b", default=True, show_default=True, help="The factor 1/b of Eq. 4.")
@click.option(
    "--debias/--no-debias", default=False, show_default=True, help="Subtract the noise level from each difference."
)
@click.option(
    "--equalize/--no-equalize",
    default=True,
    show_default=True,
    help="First give the channels of a tensor ranges more alike: by factors in front of depthwise convolutions, by "
    "splitting those that dwarf all others in front of matrix products.",
)
@click.option(
    "--trial-rounding",
    type=click.Choice(["nearest", "gptq"]),
    default="gptq",
    show_default=True,
    help="How the weights of a trial are rounded: by gptq, as allocate rounds them by default, or to nearest.",
)
@click.option(
    "--weight-only",
    is_flag=True,
    help="Try weights only, in half the time. Activations can then have 8 bits only, or those of a pin or --uniform.",
)
@click.option(
    "--provider",
    default="cpu",
    show_default=True,
    help="What onnxruntime runs the networks on: cuda, coreml, … where the onnxruntime that is installed has it.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes that run trials [one a processor, where there is work for more than some seconds]. The result is "
    "the same for any number.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="What all processes together may take, about, such as 2GiB: fewer run trials, and large sets of images and "
    "activations are kept on disk. The result is the same for any.",
)
@click.option(
    "--ray",
    metavar="local|ADDRESS",
    help="Run trials on a Ray cluster: on one started on this machine (local), or on that at auto, host:port or "
    "ray://host:port. It takes one trial a processor, at most --workers at a time.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Only say how many trials there are, and estimate time and memory from ten seconds' probe.",
)
@click.option("-o", "--output", type=FilePath(), help="Folder for the analysis [MODEL.infoq].")
@click.option("--json", "as_json", is_flag=True, help="Print the analysis as JSON instead of a table.")
def analyze(model: Path, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Measure how sensitive every layer of MODEL, a float32 ONNX classifier, is at every bit-width.

    The result is a folder, MODEL.infoq. Stopped at any time, the same command goes on where it was.
    """
    preprocessing = preprocessing_of(options)
    options["workers"] = options["workers"] or ("auto" if options["ray"] is None else None)
    from infoq_onnx import pipeline
    from infoq_onnx.analyses import read_analysis
    from infoq_onnx.cli.console import ConsoleReporter, show
    from infoq_onnx.report import tables
    from infoq_onnx.schema import to_json

    if dry_run:
        options.pop("output")
        with ConsoleReporter() as reporter:
            found = pipeline.plan(
                model, options.pop("calib"), preprocessing=preprocessing, reporter=reporter, **options
            )
        show(to_json(found) if as_json else tables.plan(found))
        return
    with ConsoleReporter() as reporter:
        folder = pipeline.analyze(
            model, options.pop("calib"), preprocessing=preprocessing, reporter=reporter, **options
        )
    analysis = read_analysis(folder)
    if as_json:
        show(to_json(analysis))
        return
    for table in tables.analysis(analysis):
        show(table)
    show(tables.criterion_line(analysis))
    budget = "--compression 8 --weight-only" if analysis.settings.weight_only else "--bitops uniform:4/4"
    show(f"{folder} is ready for: infoq-onnx allocate {shlex.quote(str(folder))} {budget}")
