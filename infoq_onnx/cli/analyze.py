"""infoq-onnx analyze"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, get_args

import click

from infoq_onnx.cli.options import BitList, FilePath, Whole, data_options, logits_option, preprocessing_of
from infoq_onnx.schema import EFFORTS, MeasurementSettings, Observing

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
    type=Whole(),
    default=_DEFAULTS.samples,
    show_default=True,
    help="Maximum number of images.",
)
@click.option(
    "--bits",
    type=BitList(),
    default=",".join(map(str, _DEFAULTS.bits)),
    show_default=True,
    help="Bit-widths that allocate may choose among.",
)
@click.option(
    "--effort",
    type=click.Choice(EFFORTS),
    default=_DEFAULTS.effort,
    show_default=True,
    help="How much is tried. normal: 2, 3, 4 and 6 bits, with as many images as the choice of bits needs. quick: the "
    "same with 64 images. full: all bit-widths, with all images; takes several times as long.",
)
@click.option(
    "--encoder",
    default=_DEFAULTS.encoder,
    show_default=True,
    help="How InfoQ encodes the images (X): pca, self (the model's own features), dinov2, or an ONNX file.",
)
@click.option(
    "--projections",
    type=int,
    default=_DEFAULTS.projections,
    show_default=True,
    help="Number of random directions of sliced mutual information.",
)
@click.option(
    "--neighbours",
    type=int,
    default=_DEFAULTS.neighbours,
    show_default=True,
    help="Number of neighbours of the estimators (k).",
)
@click.option(
    "--observers",
    type=click.Choice(get_args(Observing)),
    help="At which tensors mutual information is measured, which InfoQ's criteria need: at none, at those selected as "
    "observers, or at all candidates. all takes longest, and lets score --criterion infoq use any --threshold "
    "[none, or selected with --effort full].",
)
@click.option(
    "--equalize/--no-equalize",
    default=_DEFAULTS.equalize,
    show_default=True,
    help="First make the ranges of a tensor's channels more equal: scale channels in front of depthwise convolutions, "
    "and split outlier channels in front of matrix products.",
)
@click.option(
    "--act-range",
    type=click.Choice(["mse", "percentile", "minmax", "entropy"]),
    default=_DEFAULTS.act_range,
    show_default=True,
    help="How the ranges of activations are chosen. mse: least squared error; percentile: all but 0.01 % of the "
    "values; minmax: all values; entropy: least KL divergence of the distribution.",
)
@click.option(
    "--trial-rounding",
    type=click.Choice(["nearest", "gptq"]),
    default=_DEFAULTS.trial_rounding,
    show_default=True,
    help="How trials round weights: by gptq, as allocate does by default, or to nearest.",
)
@click.option(
    "--weight-only",
    is_flag=True,
    help="Try weights only, in half the time. Activations then stay at 8 bits, unless allocate --pin or --uniform "
    "changes them.",
)
@click.option(
    "--provider",
    default=_DEFAULTS.provider,
    show_default=True,
    help="Execution provider of onnxruntime: cuda, coreml, … if the installed onnxruntime has it.",
)
@click.option(
    "--workers",
    type=Whole(min=1),
    help="Number of processes that run trials [one per processor, if there is work for more than a few seconds]. It "
    "does not change the result.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="Approximate memory of all processes together, such as 2GiB: fewer processes run, and large sets of images "
    "and activations go to disk. It does not change the result.",
)
@click.option(
    "--ray",
    metavar="local|ADDRESS",
    help="Run trials on a Ray cluster: start one on this machine (local), or join a running one (auto, host:port or "
    "ray://host:port). It runs one trial per processor, at most --workers at a time.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Only print the number of trials, and an estimate of time and memory from probes, which take a few seconds to "
    "two minutes.",
)
@logits_option
@click.option(
    "--force", is_flag=True, help="First remove what the folder holds. Without it, an earlier analysis is kept."
)
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
