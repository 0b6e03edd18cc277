"""infoq-onnx allocate"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from infoq_onnx.cli.options import BitList, BitPair, FilePath, Whole
from infoq_onnx.schema import AllocationSettings

_DEFAULTS = AllocationSettings()

METRICS = ("bitops", "size", "compression", "avg_weight_bits", "avg_act_bits")


@click.command(
    short_help="Choose bits for every layer within a budget, write the model.",
    epilog="""\b
Examples: infoq-onnx allocate --bitops uniform:4/4
          infoq-onnx allocate --compression 10.66 --weight-only --pin first=8 -o small.onnx""",
)
@click.argument("analysis", type=FilePath(), required=False)
@click.option("--bitops", help="Maximum BitOps per image: 23.04G, or uniform:3/3 for those of all layers at 3/3.")
@click.option(
    "--size",
    help="Maximum file size: 1.5MiB, 900KB. (uniform:3, and other storages and formats, count only the weights.)",
)
@click.option("--compression", help="Minimum factor by which weights are smaller than in float: 10.66.")
@click.option("--avg-weight-bits", help="Maximum mean of weight bits over all weights: 3.5.")
@click.option("--avg-act-bits", help="Maximum mean of activation bits over all activations: 5.")
@click.option(
    "--budget",
    "tables",
    multiple=True,
    metavar="CSV:LIMIT",
    help="Maximum cost by a table with the columns layer, w_bits, a_bits, cost: latency.csv:12ms.",
)
@click.option("--uniform", "uniform_bits", type=BitPair(), help="The same bits everywhere, for comparison: 3/8.")
@click.option("--weight-only", is_flag=True, help="Keep all activations at 8 bits.")
@click.option(
    "--alpha",
    type=float,
    default=_DEFAULTS.alpha,
    show_default=True,
    help="Factor on the scores of activations.",
)
@click.option(
    "--criterion",
    help="Criterion that scores the layers. kl-pooled: how far predictions diverge, which kept more accuracy on all "
    "networks that we measured; infoq: lost information, as published; infoq-onnx criteria lists all. [kl-pooled; "
    "after analyze --effort full: kl]",
)
@click.option("--bits", type=BitList(), help="Bit-widths to choose among, such as 2,4,8 [all that were analysed].")
@click.option(
    "--pin",
    "pins",
    multiple=True,
    metavar="NAME=W/A",
    help="Fix a layer's bits: first=8/8, last=8/8, NAME=4/8, 'block1.*=8' (weights), NAME=/8 (its input).",
)
@click.option(
    "--rounding",
    type=click.Choice(["nearest", "gptq"]),
    default=_DEFAULTS.rounding,
    show_default=True,
    help="gptq: later weights of a layer compensate for the errors of earlier ones; nearest: fast, much less accurate.",
)
@click.option(
    "--repair/--no-repair",
    default=_DEFAULTS.repair,
    show_default=True,
    help="With gptq, each layer also compensates for the errors of the layers before it; this runs again per budget.",
)
@click.option(
    "--samples",
    type=Whole(min=1),
    help="Maximum number of images that gptq rounds with [those of the analysis]. More images improve the rounding and "
    "cost far less here than in analyze.",
)
@click.option(
    "--storage",
    type=click.Choice(["packed", "native", "int8"]),
    help="packed [the default]: each weight takes exactly its bits and is unpacked when the model is loaded; native: "
    "ONNX's INT2 and INT4 (operator sets 25 and 21), a byte above 4 bits; int8: one byte per weight.",
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["qdq", "qonnx"]),
    default=_DEFAULTS.file_format,
    show_default=True,
    help="qdq: for onnxruntime; qonnx: Quant nodes, for FINN and Brevitas (needs the extra qonnx).",
)
@click.option(
    "--target",
    type=click.Choice(["any", "x86-avx2", "x86-vnni", "arm64"]),
    default=_DEFAULTS.target,
    show_default=True,
    help="Processor that the model will run on. On x86 without VNNI, sums of 8-bit products may saturate: any and "
    "x86-avx2 give layers in which they could 7-bit weights instead of 8-bit ones; x86-vnni and arm64 do not.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="Approximate memory, such as 2GiB: large sets of images and activations go to disk.",
)
@click.option("--model", type=FilePath(), help="Where the float model is now, if it moved.")
@click.option("--calib", type=FilePath(), help="Where the calibration data is now, if it moved.")
@click.option("--classes", type=FilePath(), help="Where the file of class names is now, if it moved.")
@click.option("-o", "--output", type=FilePath(), help="ONNX file to write [MODEL.BUDGET.onnx].")
@click.option("--force", is_flag=True, help="Replace a file of that name that infoq-onnx did not write.")
@click.option("--json", "as_json", is_flag=True, help="Print the allocation as JSON instead of a table.")
def allocate(analysis: Path | None, as_json: bool, **options: Any) -> None:
    """Give every layer its bits within a budget and write the mixed-precision model.

    ANALYSIS is the folder that analyze made; by default the newest one here. Several bounds hold together.
    """
    from infoq_onnx import pipeline
    from infoq_onnx.analyses import find_analysis
    from infoq_onnx.cli.progress_bar import ConsoleReporter
    from infoq_onnx.cli.results import show
    from infoq_onnx.report import tables
    from infoq_onnx.schema import to_json

    if analysis is None:
        analysis = find_analysis()
        click.echo(f"using the analysis {analysis}", err=True)
    bounds = {metric: text for metric in METRICS if (text := options.pop(metric)) is not None}
    with ConsoleReporter() as reporter:
        result = pipeline.allocate(analysis, bounds=bounds, reporter=reporter, **options)
    if as_json:
        show(to_json(result.allocation))
        return
    show(tables.allocation(result))
    show(tables.totals(result))
    show(tables.verification_line(result.verification))
    if result.verification.kernels:
        show(tables.kernels_line(result.verification.kernels))
    show(f"wrote {result.model_path} and {result.allocation_path}")
