"""`analyze` and `allocate` in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infoq_onnx.pipeline.allocating import allocate
from infoq_onnx.pipeline.analyzing import analyze
from infoq_onnx.reporter import Reporter
from infoq_onnx.schema import Compressed, typed


@typed
def compress(
    model: Path | str,
    calib: Path | str,
    *,
    bounds: Mapping[str, str | float],
    weight_only: bool = False,
    pins: Sequence[str] = (),
    rounding: str = "gptq",
    analysis: Path | str | None = None,
    output: Path | str | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Compressed:
    """Run `analyze` and `allocate` in one call.

    Parameters
    ----------
    model, calib : see `analyze`
    bounds, weight_only, pins, rounding, output : see `allocate`
    analysis : folder for the analysis
    reporter : receives progress
    options : further arguments of `analyze`; by default, `trial_rounding` equals `rounding`, and with `weight_only`
        activations are not tried

    Returns
    -------
    Compressed

    Raises
    ------
    InfoQError
        See `infoq_onnx.errors`.
    """
    options = {"trial_rounding": rounding, "weight_only": weight_only, **options}
    folder = analyze(model, calib, output=analysis, reporter=reporter, **options)
    return allocate(
        folder,
        bounds=bounds,
        weight_only=weight_only,
        pins=pins,
        rounding=rounding,
        output=output,
        reporter=reporter,
    )
