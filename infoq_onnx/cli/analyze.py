"""infoq-onnx analyze"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, get_args

import click

from infoq_onnx.cli.options import BitList, FilePath, data_options, logits_option, preprocessing_of
from infoq_onnx.schema import MeasurementSettings, Observing

_DEFAULTS = MeasurementSettings()


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
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=_DEFAULTS.samples,
    show_default=True,
    help="Images to use, at most.",
)
@click.option(
    "--bits", type=BitList(), default=",".join(map(str, _DEFAULTS.bits)), show_default=True, help="Bit-widths to try."
)
@click.option(
    "--encoder",
    default=_DEFAULTS.encoder,
    show_default=True,
    help="What stands for X: pca, self (the model's own features), dinov2, or an ONNX file.",
)
@click.option(
    "--projections",
    type=int,
    default=_DEFAULTS.projections,
    show_default=True,
    help="Directions of the sliced estimates.",
)
@click.option("--neighbours", type=int, default=_DEFAULTS.neighbours, show_default=True, help="k of the estimators.")
@click.option(
    "--observers",
    type=click.Choice(get_args(Observing)),
    default=_DEFAULTS.observers,
    show_default=True,
    help="Who sees the widths above those that select observers: only the tensors that tell harm, or all candidates, "
    "which lets score --criterion infoq take any --threshold.",
)
@click.option(
    "--equalize/--no-equalize",
    default=_DEFAULTS.equalize,
    show_default=True,
    help="First give the channels of a tensor ranges more alike: by factors in front of depthwise convolutions, by "
    "splitting those that dwarf all others in front of matrix products.",
)
@click.option(
    "--act-range",
    type=click.Choice(["mse", "percentile", "minmax", "entropy"]),
    default=_DEFAULTS.act_range,
    show_default=True,
    help="How the ranges of activations are chosen: least squared error, all but 0.01 % of the values, all of them, or "
    "least KL divergence of their distribution.",
)
@click.option(
    "--trial-rounding",
    type=click.Choice(["nearest", "gptq"]),
    default=_DEFAULTS.trial_rounding,
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
    default=_DEFAULTS.provider,
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
@logits_option
@click.option("--force", is_flag=True, help="First remove what the folder holds; otherwise it is kept beside.")
@click.option("-o", "--output", type=FilePath(), help="Folder for the analysis [MODEL.infoq].")
@click.option("--json", "as_json", is_flag=True, help="Print the analysis as JSON instead of a table.")
def analyze(model: Path, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Measure how sensitive every layer of MODEL, a float32 ONNX classifier, is at every bit-width.

    The result is a folder, MODEL.infoq. Stopped at any time, the same command goes on where it was. What the folder
    holds of the same model, images and settings is not measured again: further --bits, for example, are added.
    """
    preprocessing = preprocessing_of(options)
    options["workers"] = options["workers"] or ("auto" if options["ray"] is None else None)
    from infoq_onnx import pipeline
    from infoq_onnx.analyses import read_analyzed
    from infoq_onnx.cli.progress_bar import ConsoleReporter
    from infoq_onnx.cli.results import show
    from infoq_onnx.report import tables
    from infoq_onnx.schema import to_json

    if dry_run:
        del options["output"], options["force"]
        with ConsoleReporter() as reporter:
            plan = pipeline.plan(model, options.pop("calib"), preprocessing=preprocessing, reporter=reporter, **options)
        show(to_json(plan) if as_json else tables.plan(plan))
        return
    with ConsoleReporter() as reporter:
        folder = pipeline.analyze(
            model, options.pop("calib"), preprocessing=preprocessing, reporter=reporter, **options
        )
    found = read_analyzed(folder)
    if as_json:
        show(to_json(found))
        return
    for table in tables.analysis(found):
        show(table)
    show(tables.criterion_line(found))
    budget = "--compression 8 --weight-only" if found.analysis.settings.weight_only else "--bitops uniform:4/4"
    show(f"{folder} is ready for: infoq-onnx allocate {shlex.quote(str(folder))} {budget}")
