"""`allocate`: choose bits for every layer within a budget and write the model. Steps: resolve, decide, round, emit."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from infoq_onnx.allocation.costs import Budget, by_unit, float_costs
from infoq_onnx.allocation.decide import decide, decide_uniform, weight_choices
from infoq_onnx.allocation.metrics import Table
from infoq_onnx.emit.kernels import left_in_float
from infoq_onnx.emit.targets import meeting_at_8_bits
from infoq_onnx.errors import OutputError, setting
from infoq_onnx.files import sha256_of, sha256_of_text
from infoq_onnx.graph.external import model_bytes
from infoq_onnx.pipeline.emitting import Emission
from infoq_onnx.pipeline.resolving import Places, Request, resolve
from infoq_onnx.pipeline.scoring import scores_for
from infoq_onnx.pipeline.sizing import Choosing, is_absolute, within_file
from infoq_onnx.preparation import report_samples
from infoq_onnx.quantize.codes import CodeTable, load_codes, save_codes
from infoq_onnx.reporter import Reporter, Silent
from infoq_onnx.schema import (
    BASELINE_BITS,
    EXACT_BITS,
    Allocation,
    AllocationSettings,
    Compressed,
    Verification,
    to_json,
    typed,
)
from infoq_onnx.sensitivity.blocks import rounding_count
from infoq_onnx.simulate.rounding.layerwise import unrounded
from infoq_onnx.simulate.simulation import LayerCodes, layer_codes


@typed
def allocate(
    analysis: Path | str | None = None,
    settings: AllocationSettings | None = None,
    *,
    memory: str | int | None = None,
    model: Path | str | None = None,
    calib: Path | str | None = None,
    classes: Path | str | None = None,
    output: Path | str | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
    **changes: Any,
) -> Compressed:
    """Choose bits for every layer within a budget, and write the model.

    Parameters
    ----------
    analysis : the analysis folder; None: the newest one in the working folder
    settings : the settings; None: the defaults
    memory : approximate memory limit in bytes, such as "2GiB"; large sets of images are read again when needed, and
        large activations go to a file; None: no limit
    model, calib, classes : current paths, if the files moved since the analysis; None: the paths of the analysis
    output : ONNX file to write; the allocation is written next to it as .json; None: `<model>.<budget>.onnx` in the
        working folder
    force : replace a file of that name that `allocate` did not write
    reporter : receives progress
    changes : fields of `AllocationSettings` that replace those of `settings`, such as `bounds={"bitops": "23.04G"}`

    Returns
    -------
    Compressed

    Raises
    ------
    InfeasibleBudgetError
        No allocation meets the bounds. The message states what is reachable.
    VerificationError
        The written model did not compute what was simulated, and was removed.
    InfoQError
        See `infoq_onnx.errors`.
    """
    wanted = dataclasses.replace(settings or AllocationSettings(), **changes)
    request = resolve(analysis, wanted, Places(model, calib, classes), memory, output, reporter or Silent(), force)
    allocation = decide_bits(request)
    # load the images now, so that missing files are reported before weights are rounded
    _ = request.check_images
    codes = round_weights(request, allocation)
    verification = emit(request, allocation, codes)
    return Compressed(
        allocation=allocation,
        network=request.found.network,
        before=float_costs(request.found.network),
        model_path=request.path,
        allocation_path=request.path.with_suffix(".json"),
        file_bytes=request.path.stat().st_size,
        float_file_bytes=model_bytes(request.prepared.path),
        verification=verification,
    )


def decide_bits(request: Request) -> Allocation:
    """Choose the bits of every unit.

    Raises
    ------
    InfeasibleBudgetError
        No allocation meets the bounds.
    SettingsError
        A setting is invalid.
    """
    found, settings, reporter = request.found, request.settings, request.reporter
    seen = (0, "")
    if request.method.reads_images:
        seen = (found.calibration.samples, found.calibration.sha256)
    if settings.samples is not None:
        seen = (len(request.images), request.images.sha256)
        report_samples(request.images, None, reporter)
    common: dict[str, Any] = {
        "analysis_sha256": sha256_of(request.measurement.analysis),
        "rounding": settings.rounding,
        "repair": request.repair,
        "target": settings.target,
        "samples": seen[0],
        "samples_sha256": seen[1],
    }
    if settings.uniform_bits is not None:
        if settings.weight_only and settings.uniform_bits[1] != BASELINE_BITS:
            reporter.note(f"{setting('weight_only')}: activations get 8 bits, not {settings.uniform_bits[1]}")
        allocation = decide_uniform(found, settings.uniform_bits, settings.weight_only, request.saturating)
        allocation = dataclasses.replace(allocation, **common)
    else:
        criterion = settings.criterion or found.default_criterion
        table = scores_for(request.measurement, found, criterion, request.prepared, request.grids, reporter)
        common["scores_sha256"] = sha256_of_text(to_json(table))

        def choosing(wanted: AllocationSettings) -> Choosing:
            def within_bounds(
                within: tuple[Budget, ...], weights: Mapping[str, Collection[int]] | None = None
            ) -> Allocation:
                decided = decide(found, table.scores, wanted, within, weights, request.saturating)
                return dataclasses.replace(decided, **common)

            return Choosing(weight_choices(found, table.scores, wanted, request.saturating), within_bounds, wanted.pins)

        if found.settings.weight_only and not settings.weight_only:
            reporter.note(
                f"the analysis tried weights only ({setting('weight_only')}): activations that no pin names stay at 8 "
                "bits"
            )
        if request.storage == "packed" and settings.file_format == "qdq":
            unpinned = choosing(dataclasses.replace(settings, pins=())) if settings.pins else None
            allocation = within_file(_emission(request), request.bounds, choosing(settings), unpinned)
        else:
            allocation = choosing(settings).decide(request.bounds)
    bits = by_unit(allocation.weight_bits, allocation.activation_bits)
    for budget in request.bounds:
        if isinstance(budget.metric, Table):
            spent, unit = budget.value(found.network, bits), budget.metric.suffix
            unit = f" {unit}" if unit else ""
            reporter.note(f"{budget.metric.label}: {spent:.6g}{unit} of {budget.bound.limit:.6g}{unit}")
    if narrowed := sum(allocation.weight_bits[layer] == EXACT_BITS for layer in request.saturating):
        reporter.note(
            f"weights of {narrowed} of {len(allocation.weight_bits)} layers get 7 bits: with 8 their sums may saturate "
            f"on x86 processors without VNNI; {setting('target')} x86-vnni or arm64 lifts this limit"
        )
    return allocation


def round_weights(request: Request, allocation: Allocation) -> dict[str, LayerCodes]:
    """Round the weights of every layer to the bits of an allocation.

    Returns
    -------
    dict of str to LayerCodes
        Layer → codes.
    """
    tried, rounding = request.found.settings.trial_rounding, request.settings.rounding
    if request.settings.uniform_bits is None and tried != rounding:
        told = request.reporter.note if request.method.reads_images else request.reporter.warn
        told(
            f"the analysis measured weights rounded by {tried}, and {setting('rounding')} is {rounding}: analyze with "
            f"{setting('trial_rounding')} {rounding} for bits that suit it better"
        )
    of, bits = request.quantizable, allocation.bits
    exact = meeting_at_8_bits(of, bits) if request.fits_pairs else frozenset()
    if request.repair and request.method.sequential is not None:
        return request.method.sequential(of, bits, request.images, _progress(request), request.spill, exact)
    return layer_codes(of, bits, _rounded_layerwise(request, allocation), exact)


def emit(request: Request, allocation: Allocation, codes: Mapping[str, LayerCodes]) -> Verification:
    """Write and verify the model. Warn of layers in float that could be integer kernels, and of a file above its limit.

    Raises
    ------
    VerificationError
        The written model did not compute what was simulated, and was removed.
    """
    prepared, path, reporter = request.prepared, request.path, request.reporter
    verification = _emission(request).write(allocation, codes, request.check_images, path)
    for kernel in left_in_float(prepared.graph, prepared.network, verification.kernels):
        reporter.warn(
            f"{kernel.layer} runs in float ({kernel.runs}), though it could be an integer kernel: {kernel.reason}"
        )
    for bound in allocation.bounds:
        if is_absolute(bound) and path.stat().st_size > bound.limit:
            reporter.warn(
                f"{path} has {path.stat().st_size:,} bytes: {setting('size')} {bound.text} bounds the weights alone "
                "where they are not packed"
            )
    return verification


def _emission(request: Request) -> Emission:
    preprocessing = request.found.calibration.preprocessing
    return Emission(request.quantizable, request.storage, request.label, preprocessing, request.settings.file_format)


def _progress(request: Request) -> Any:
    return lambda layer, done, total: request.reporter.progress("rounding", layer, done, total)


def _rounded_layerwise(request: Request, allocation: Allocation) -> CodeTable:
    """Round each layer independently of the others. Reuse the codes of the analysis, and store new codes there."""
    prepared, file = request.prepared, request.measurement.codes
    if request.method.layerwise is None:
        return {}
    # codes can be shared with the analysis only if they come from all images of the analysis
    images = request.found.calibration.samples
    from_all = rounding_count(images, request.found.settings.effort) == images
    shared = request.settings.samples is None and from_all
    kept = load_codes(file, prepared.network) if shared and file.is_file() else {}
    widths = sorted({*(request.found.settings.bits if shared else ()), *allocation.weight_bits.values()})
    if not unrounded(prepared.graph, prepared.network, widths, kept):
        return kept
    table = request.method.layerwise(
        prepared.graph, prepared.network, request.images, widths, _progress(request), request.spill, kept
    )
    if shared:
        with contextlib.suppress(OutputError):
            # if the folder cannot be written, the codes are computed again next time
            save_codes(table, file, request.found.fingerprint)
            request.measurement.seal()
    return table
