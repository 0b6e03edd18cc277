"""Bits for every layer within a budget, and the model that has them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from infoq_onnx.allocation.bounds import option, parse_bound
from infoq_onnx.allocation.costs import Metric, float_costs
from infoq_onnx.allocation.decide import budget_label, decide, decide_uniform, no_scores
from infoq_onnx.analyses import CHECKSUMS, CODES, find_analysis, read_analysis
from infoq_onnx.data.dataset import Dataset
from infoq_onnx.emit.kernels import left_in_float
from infoq_onnx.emit.qonnx import require_qonnx
from infoq_onnx.emit.storage import STORAGES
from infoq_onnx.emit.targets import TARGETS, meeting_at_8_bits, require_target, saturating_layers
from infoq_onnx.errors import AnalysisError, OutputError, SettingsError
from infoq_onnx.execute.resources import Resources
from infoq_onnx.files import require_writable, sha256_of, write_checksums
from infoq_onnx.graph.external import model_bytes
from infoq_onnx.inputs import (
    PreparedModel,
    calibration_again,
    memory_bytes,
    prepare_again,
    report_skipped,
)
from infoq_onnx.pipeline.emitting import Emission
from infoq_onnx.pipeline.sizing import is_absolute, within_file
from infoq_onnx.progress import Reporter, Silent
from infoq_onnx.quantize.codes import CodeTable, load_codes, save_codes
from infoq_onnx.quantize.table import GridTable, load_table
from infoq_onnx.schema import (
    BASELINE_BITS,
    DEFAULT_CRITERION,
    EXACT_BITS,
    Allocation,
    Bound,
    Compressed,
    Rounding,
    from_json,
)
from infoq_onnx.simulate.alone import round_alone
from infoq_onnx.simulate.equalize import equalized
from infoq_onnx.simulate.reconstruct import reconstruct
from infoq_onnx.simulate.simulation import layer_codes
from infoq_onnx.simulate.spill import Spill

FORMATS = {"qdq": 128, "qonnx": 8}
"""Images that a file of each format is checked with; qonnx executes node by node, in seconds an image."""


def allocate(
    analysis: Path | str | None = None,
    *,
    bounds: Mapping[Metric, str] | None = None,
    uniform_bits: tuple[int, int] | None = None,
    weight_only: bool = False,
    alpha: float = 1.0,
    criterion: str = DEFAULT_CRITERION,
    bits: Sequence[int] | None = None,
    pins: Sequence[str] = (),
    rounding: str = "gptq",
    repair: bool = True,
    samples: int | None = None,
    storage: str | None = None,
    file_format: str = "qdq",
    target: str = "any",
    memory: str | None = None,
    model: Path | str | None = None,
    calib: Path | str | None = None,
    classes: Path | str | None = None,
    output: Path | str | None = None,
    reporter: Reporter | None = None,
) -> Compressed:
    """Give every layer its bits within a budget, and write the model.

    Parameters
    ----------
    analysis : the analysis folder; None takes the newest in the working folder
    bounds : metric → limit as the user writes it, e.g. {"bitops": "23.04G"} or {"compression": "10.66"}
    uniform_bits : (weights, activations): the same bits everywhere, instead of solving anything
    weight_only : leave activations at 8 bits
    alpha : factor on activation scores
    criterion : whose scores to use: "kl", how far the predictions diverge, or "infoq", the information that is lost, as
        the paper has it
    bits : widths to choose among; None for all that were analysed
    pins : e.g. "first=8/8", "conv1=4", "last=/8"
    rounding : "nearest", or "gptq", where later weights of a layer make up for the errors of earlier ones
    repair : with gptq, also let each layer make up for the errors of the layers before it
    samples : how many images gptq rounds with, any of the calibration set; None: those of the analysis
    storage : "packed" (None): every weight in exactly its bits, and an absolute bound on the size holds for the whole
        file; "native": ONNX's narrow integers; "int8": one byte a weight
    file_format : "qdq" for onnxruntime; "qonnx" for FINN and Brevitas, with float weights and no storage to choose
    target : "any", or "x86-avx2": layers that would saturate on x86 processors without VNNI get weights of 7 bits in
        place of 8; "x86-vnni" and "arm64" have no such limit
    memory : bytes such as "2GiB" that this may take, about: images and activations that would take much of it are read
        again or go to a file
    model, calib, classes : where they are now, when they moved since the analysis
    output : the ONNX to write; the allocation goes beside it as .json
    reporter : receives progress

    Returns
    -------
    Compressed

    Raises
    ------
    InfeasibleBudgetError
        The message says what is reachable.
    VerificationError
        The written model did not compute what was simulated; it is removed.
    InfoQError
        See `infoq_onnx.errors`.
    """
    if storage is not None and storage not in STORAGES:
        raise SettingsError(f"--storage {storage}: choose {' or '.join(STORAGES)}")
    if rounding not in get_args(Rounding):
        raise SettingsError(f"--rounding {rounding}: choose {' or '.join(get_args(Rounding))}")
    require_target(target)
    if file_format not in FORMATS:
        raise SettingsError(f"--format {file_format}: choose {' or '.join(FORMATS)}")
    if file_format == "qonnx":
        if storage is not None:
            raise SettingsError(f"--storage {storage}: --format qonnx keeps weights in float; drop one of the two")
        require_qonnx()
    storage = storage or "packed"
    if samples is not None and rounding == "nearest":
        raise SettingsError(f"--samples {samples}: --rounding nearest looks at no images; drop one of the two")
    share = Resources(memory=memory_bytes(memory)).share
    reporter = reporter or Silent()

    def progress(layer: str, done: int, total: int) -> None:
        reporter.progress("rounding", layer, done, total)

    folder = Path(analysis) if analysis is not None else find_analysis()
    found = read_analysis(folder)
    network = found.network
    bounds = dict(bounds or {})
    if uniform_bits is None and not bounds:
        raise SettingsError(
            "give one or more bounds (such as --bitops 23.04G or --compression 10.66), or --uniform W/A"
        )
    if criterion not in found.scores:
        # uniform bits go by none, but a name that is none is a mistake all the same
        raise no_scores(found, criterion)
    choosing = [*map(option, bounds), *(["--pin"] if pins else []), *(["--bits"] if bits is not None else [])]
    if uniform_bits is not None and choosing:
        raise SettingsError(f"--uniform decides all bits: drop it, or {' and '.join(choosing)}")
    parsed = tuple(parse_bound(metric, text, network) for metric, text in bounds.items())
    label = budget_label(parsed, uniform_bits, weight_only)
    path = Path(output) if output is not None else Path(f"{Path(model or found.model.path).stem}.{label}.onnx")
    if path.suffix != ".onnx":
        raise SettingsError(f"-o {path}: the model's name must end in .onnx")
    prepared = prepare_again(found, model)
    _check_output(path, prepared)
    require_writable(path)
    table = _grids(folder / "ranges.npz", prepared, found.settings.bits)
    prepared = dataclasses.replace(prepared, graph=equalized(prepared.graph, network, table.factors))
    saturating: frozenset[str] = frozenset()
    if TARGETS[target] and file_format == "qdq":
        saturating = saturating_layers(prepared.graph, network, table)

    @functools.cache
    def images() -> Dataset:
        """Read what weights are rounded with: once, and only where it is needed."""
        return calibration_again(found, prepared, calib, classes, samples, cache_bytes=share)

    if samples is not None or calib is not None or classes is not None:
        # where the user says they are now, there may be others than those of the analysis
        images()
    seen = (found.calibration.samples, found.calibration.sha256)
    if samples is not None:
        seen = (len(images()), images().sha256)
        report_skipped(images(), reporter)
    analysis_sha256 = sha256_of(folder / "analysis.json")
    emission = Emission(prepared, table, storage, label, found.calibration.preprocessing, file_format)

    def decided(within: tuple[Bound, ...], widest_weight: int = BASELINE_BITS) -> Allocation:
        allocation = (
            decide_uniform(found, uniform_bits, weight_only, saturating)
            if uniform_bits is not None
            else decide(found, within, pins, weight_only, alpha, criterion, bits, widest_weight, saturating)
        )
        return dataclasses.replace(
            allocation,
            analysis_sha256=analysis_sha256,
            rounding=rounding,
            repair=rounding == "gptq" and repair,
            target=target,
            samples=seen[0] if rounding == "gptq" else 0,
            samples_sha256=seen[1] if rounding == "gptq" else "",
        )

    if uniform_bits is None and found.settings.weight_only and not weight_only:
        reporter.note("the analysis tried weights only (--weight-only): activations that no pin names stay at 8 bits")
    if (storage, file_format) == ("packed", "qdq"):
        allocation = within_file(emission, parsed, found.settings.bits, decided)
    else:
        allocation = decided(parsed)
    if narrowed := sum(allocation.weight_bits[layer] == EXACT_BITS for layer in saturating):
        reporter.note(
            f"weights of {narrowed} of {len(allocation.weight_bits)} layers get 7 bits: with 8 their sums may saturate "
            "on x86 processors without VNNI; --target x86-vnni or arm64 lifts this limit"
        )
    # what may be missing is missed before weights are rounded
    # any images will do for the check, so those that cannot be read are left out
    few = min(FORMATS[file_format], found.calibration.samples)
    dataset = calibration_again(found, prepared, calib, classes, few, tolerated_percent=100)
    if uniform_bits is None and found.settings.trial_rounding != rounding:
        told = reporter.warn if rounding == "nearest" else reporter.note
        told(
            f"the analysis measured weights rounded by {found.settings.trial_rounding}, and --rounding is {rounding}: "
            f"analyze with --trial-rounding {rounding} for bits that suit it better"
        )
    bits_chosen = (allocation.weight_bits, allocation.activation_bits)
    exact = meeting_at_8_bits(prepared.graph, network, *bits_chosen) if TARGETS[target] and file_format == "qdq" else ()
    spill = None if share is None else Spill(path.parent, share)
    if rounding == "gptq" and repair:
        codes = reconstruct(
            prepared.graph, network, prepared.placement, table, *bits_chosen, images(), progress, spill, exact
        )
    else:
        rounded = None
        if rounding == "gptq":
            kept = folder / CODES if samples is None else None
            widths = sorted({*found.settings.bits, *allocation.weight_bits.values()})
            rounded = _rounded_alone(kept, prepared, widths, images, progress, spill)
        codes = layer_codes(prepared.graph, network, table, *bits_chosen, rounded, exact)
    verification = emission.write(allocation, codes, dataset, path)
    for kernel in left_in_float(prepared.graph, network, verification.kernels):
        reporter.warn(
            f"{kernel.layer} runs in float ({kernel.runs}), though it could be an integer kernel: {kernel.reason}"
        )
    for bound in allocation.bounds:
        if is_absolute(bound) and path.stat().st_size > bound.limit:
            reporter.warn(
                f"{path} has {path.stat().st_size:,} bytes: --size {bound.text} bounds the weights alone where they "
                "are not packed"
            )
    return Compressed(
        allocation=allocation,
        network=network,
        before=float_costs(network),
        model_path=path,
        allocation_path=path.with_suffix(".json"),
        file_bytes=path.stat().st_size,
        float_file_bytes=model_bytes(prepared.path),
        verification=verification,
    )


def _rounded_alone(
    kept: Path | None,
    prepared: PreparedModel,
    bits: Sequence[int],
    images: Callable[[], Dataset],
    progress: Callable[[str, int, int], None],
    spill: Spill | None,
) -> CodeTable:
    """Every layer's codes by itself, at every width: as `kept`, or made, and kept there for the next budget."""
    table = load_codes(kept) if kept is not None and kept.exists() else {}
    known = {width for widths in table.values() for width in widths}
    if table and known.issuperset(bits):
        return table
    missing = sorted(set(bits) - known)
    for layer, widths in round_alone(prepared.graph, prepared.network, images(), missing, progress, spill).items():
        table[layer] = {**table.get(layer, {}), **widths}
    if kept is not None:
        with contextlib.suppress(OutputError):
            # a folder that cannot be written only costs time
            save_codes(table, kept)
            write_checksums(kept.parent, ("analysis.json", "ranges.npz", CODES), CHECKSUMS)
    return table


def _grids(path: Path, prepared: PreparedModel, bits: Sequence[int]) -> GridTable:
    """Load the grids of an analysis, and make sure that there is one wherever one may be needed."""
    table = load_table(path)
    layers = [layer.name for layer in prepared.network.layers if layer.weight is not None]
    complete = (
        all(BASELINE_BITS in table.activations.get(tensor, ()) for tensor in prepared.placement.storage)
        and all(set(bits) <= set(table.activations.get(group.name, ())) for group in prepared.network.groups)
        and all({*bits, EXACT_BITS, BASELINE_BITS} <= set(table.weights.get(layer, ())) for layer in layers)
    )
    if not complete:
        raise AnalysisError(f"{path} was made by another version, and lacks grids that are needed; run analyze again")
    return table


def _check_output(path: Path, prepared: PreparedModel) -> None:
    """Refuse to write over what allocate did not write."""
    # os.path says no where a name is too long or a folder is closed: writing will tell
    if os.path.realpath(path) == os.path.realpath(prepared.path) or (
        os.path.isfile(path) and _same_content(path, prepared.path)
    ):
        raise SettingsError(f"-o {path} is the float model itself; choose another name")
    beside = path.with_suffix(".json")
    if os.path.isfile(beside):
        try:
            from_json(Allocation, beside.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SettingsError(f"-o {path} would replace {beside}, no allocation; choose another name") from error


def _same_content(path: Path, model: Path) -> bool:
    try:
        return sha256_of(path) == sha256_of(model)
    except OSError as error:
        raise OutputError(f"cannot replace {path}: {error.strerror or error}; choose another name with -o") from error
