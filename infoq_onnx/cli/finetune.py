"""infoq-onnx finetune"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from infoq_onnx.cli.options import FilePath, Whole
from infoq_onnx.schema import AUGMENTATIONS, FINETUNE_MODES, FinetuneSettings

_DEFAULTS = FinetuneSettings()
_SECONDS = {"s": 1, "m": 60, "h": 3600}


@click.command(
    short_help="Train the model of an allocation, and write it again.",
    epilog="""\b
Examples: infoq-onnx finetune model.bitops-3-3.json --train images/
          infoq-onnx finetune small.json --train images/ --mode lsq --epochs 30 --max-time 2h""",
)
@click.argument("allocation", type=FilePath())
@click.option(
    "--train",
    required=True,
    type=FilePath(),
    help="Images to train with, as --calib of analyze. They need labels only with --labels.",
)
@click.option("--val", type=FilePath(), help="Images that choose the best state [a part of those of --train].")
@click.option(
    "--held-out",
    type=float,
    default=_DEFAULTS.held_out,
    show_default=True,
    help="… which is this share of them.",
)
@click.option("--classes", type=FilePath(), help="File with one class name per line, in label order, as in analyze.")
@click.option(
    "--mode",
    type=click.Choice(FINETUNE_MODES),
    default=_DEFAULTS.mode,
    show_default=True,
    help="scales: step sizes, biases and normalisation factors learn, and the integer weights stay; lsq: weights "
    "learn, too; reconstruct: like lsq, but block after block to the outputs of the float model's blocks, each for "
    "--epochs passes.",
)
@click.option(
    "--epochs", type=Whole(min=1), default=_DEFAULTS.epochs, show_default=True, help="Passes over the images."
)
@click.option("--batch", type=Whole(min=1), default=_DEFAULTS.batch, show_default=True, help="Images of an update.")
@click.option(
    "--learning-rate",
    type=float,
    help=f"Largest relative change in one update [{_DEFAULTS.rate:g}].",
)
@click.option(
    "--weight-decay",
    type=float,
    default=_DEFAULTS.weight_decay,
    show_default=True,
    help="Pull of weights towards their values before training.",
)
@click.option(
    "--warmup",
    type=float,
    default=_DEFAULTS.warmup,
    show_default=True,
    help="Share of the updates in which the learning rate rises; then it falls along half a cosine.",
)
@click.option(
    "--optimizer",
    type=click.Choice(["adamw", "sgd"]),
    default=_DEFAULTS.optimizer,
    show_default=True,
    help="Optimizer.",
)
@click.option(
    "--labels",
    type=float,
    default=_DEFAULTS.labels,
    show_default=True,
    help="Share of the labels' cross-entropy in the loss; the rest is the divergence from the float model.",
)
@click.option(
    "--augment",
    type=click.Choice(AUGMENTATIONS),
    default=_DEFAULTS.augment,
    show_default=True,
    help="Random changes of images. crop: shift small images, enlarge a part of larger ones; flip-crop: flip them left "
    "and right, too.",
)
@click.option("--patience", type=Whole(min=1), help="End after this many epochs without gain on held-out images.")
@click.option("--max-time", metavar="TIME", help="End after this time: 90s, 30m, 2h.")
@click.option("--samples", type=Whole(min=2), help="Maximum number of images [all].")
@click.option("--seed", type=Whole(min=0), default=0, show_default=True, help="Seed of every random choice.")
@click.option(
    "--device",
    default=_DEFAULTS.device,
    show_default=True,
    help="auto: a GPU if there is one; cpu; cuda:1 and the like.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "mixed"]),
    default=_DEFAULTS.precision,
    show_default=True,
    help="mixed: products in bfloat16, faster on GPUs.",
)
@click.option(
    "--checkpoint-steps",
    type=Whole(min=1),
    default=_DEFAULTS.checkpoint_steps,
    show_default=True,
    help="Updates between two checkpoints.",
)
@click.option(
    "--storage",
    type=click.Choice(["packed", "native", "int8"]),
    help="How the file stores weights, as in allocate [packed].",
)
@click.option("--export-best", is_flag=True, help="Also write the model whenever it got better on held-out images.")
@click.option("--analysis", type=FilePath(), help="Folder of the analysis [the newest one here].")
@click.option("--model", type=FilePath(), help="Where the float model is now, if it moved.")
@click.option("-o", "--output", type=FilePath(), help="ONNX file to write [ALLOCATION.finetuned.onnx].")
@click.option("--force", is_flag=True, help="Replace a file of that name that infoq-onnx did not write.")
@click.option("--json", "as_json", is_flag=True, help="Print the allocation as JSON instead of tables.")
def finetune(allocation: Path, train: Path, as_json: bool, **options: Any) -> None:
    """Train the model of ALLOCATION, a .json file that allocate wrote, to predict what the float model predicts.

    Labels are not needed. A training that was stopped goes on from its last checkpoint when the same command runs
    again. Needs the extra finetune (PyTorch).
    """
    from infoq_onnx import pipeline
    from infoq_onnx.allocation.units import parse_quantity
    from infoq_onnx.cli.progress_bar import ConsoleReporter
    from infoq_onnx.cli.results import show
    from infoq_onnx.errors import about, setting
    from infoq_onnx.report import tables
    from infoq_onnx.schema import to_json

    limit = options.pop("max_time")
    with about(setting("max_time")):
        options["max_seconds"] = None if limit is None else float(parse_quantity(limit, _SECONDS))
    if options["patience"] is None:
        del options["patience"]
    with ConsoleReporter() as reporter:
        result = pipeline.finetune(allocation, train, reporter=reporter, **options)
    if result is None:
        return
    if as_json:
        show(to_json(result.compressed.allocation))
        return
    show(tables.totals(result.compressed))
    show(tables.training(result))
    show(tables.verification_line(result.compressed.verification))
    if result.compressed.verification.kernels:
        show(tables.kernels_line(result.compressed.verification.kernels))
    show(f"wrote {result.compressed.model_path} and {result.compressed.allocation_path}")
