"""infoq-onnx lint"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infoq_onnx.cli.options import FilePath

if TYPE_CHECKING:
    from infoq_onnx.schema import Kernel


@click.command(
    short_help="Show which layers of a quantized model run as integer kernels.",
    epilog="Example: infoq-onnx lint small.onnx --strict",
)
@click.argument("model", type=FilePath())
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with 1 if a layer is left in float, or may saturate on the target, or there is no layer.",
)
@click.option(
    "--target",
    type=click.Choice(["any", "x86-avx2", "x86-vnni", "arm64"]),
    default="any",
    show_default=True,
    help="Processor that the model will run on; on x86-vnni and arm64 nothing saturates.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def lint(model: Path, strict: bool, target: str, as_json: bool) -> None:
    """Show what onnxruntime runs in place of every layer of MODEL, what keeps a layer in float, and where sums may
    saturate.

    MODEL may be any ONNX model with QuantizeLinear and DequantizeLinear, whoever made it.
    """
    from infoq_onnx import pipeline
    from infoq_onnx.cli.results import show
    from infoq_onnx.report import tables
    from infoq_onnx.schema import to_json

    found = pipeline.lint(model, target)
    if as_json:
        show(to_json(found))
    else:
        show(tables.kernels(found.kernels))
        show(tables.kernels_line(found.kernels))
    if strict and (broken := _broken(found.kernels)):
        click.echo(f"--strict: {broken}", err=True)
        raise SystemExit(1)


def _broken(kernels: Sequence[Kernel]) -> str:
    """Describe what --strict does not accept; empty if nothing."""
    if not kernels:
        return "the model has no layers"
    floats = sum(not kernel.integer for kernel in kernels)
    saturating = sum(kernel.saturates for kernel in kernels)
    counts = [f"{floats} left in float"] * (floats > 0) + [f"{saturating} may saturate"] * (saturating > 0)
    return f"of {len(kernels)} layers, {' and '.join(counts)}" if counts else ""
