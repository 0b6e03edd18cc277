"""Bits for every layer within a budget, and the model that has them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import onnx

from infoq_onnx.allocation.bounds import option, parse_bound
from infoq_onnx.allocation.costs import Metric, costs, uniform
from infoq_onnx.allocation.decide import budget_label, decide, decide_uniform
from infoq_onnx.analyses import find_analysis, read_analysis
from infoq_onnx.data import preprocess
from infoq_onnx.data.dataset import Dataset
from infoq_onnx.emit.qdq import qdq_model
from infoq_onnx.emit.storage import STORAGES
from infoq_onnx.emit.verify import verify
from infoq_onnx.errors import AnalysisError, OutputError, SettingsError
from infoq_onnx.evaluation import PREPROCESSING_KEY
from infoq_onnx.files import replacing, sha256_of, write_text
from infoq_onnx.graph.external import model_bytes
from infoq_onnx.inputs import (
    PreparedModel,
    calibration_again,
    prepare_again,
)
from infoq_onnx.progress import Reporter, Silent
from infoq_onnx.quantize.table import GridTable, load_table
from infoq_onnx.schema import (
    BASELINE_BITS,
    Allocation,
    Compressed,
    Verification,
    from_json,
    to_json,
)
from infoq_onnx.simulate.reconstruct import reconstruct
from infoq_onnx.simulate.simulation import LayerCodes, layer_codes, simulation

VERIFICATION_SAMPLES = 128
ROUNDINGS = ("nearest", "gptq")


def allocate(
    analysis: Path | str | None = None,
    *,
    bounds: Mapping[Metric, str] | None = None,
    uniform_bits: tuple[int, int] | None = None,
    weight_only: bool = False,
    alpha: float = 1.0,
    criterion: str = "infoq",
    bits: Sequence[int] | None = None,
    pins: Sequence[str] = (),
    rounding: str = "nearest",
    storage: str = "packed",
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
    criterion : whose scores to use
    bits : widths to choose among; None for all that were analysed
    pins : e.g. "first=8/8", "conv1=4", "last=/8"
    rounding : "nearest", or "gptq": layer by layer, to mend what the layers before have lost
    storage : "packed": every weight in exactly its bits; "int8": one byte a weight
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
    if storage not in STORAGES:
        raise SettingsError(f"--storage {storage}: choose {' or '.join(STORAGES)}")
    if rounding not in ROUNDINGS:
        raise SettingsError(f"--rounding {rounding}: choose {' or '.join(ROUNDINGS)}")
    folder = Path(analysis) if analysis is not None else find_analysis()
    found = read_analysis(folder)
    network = found.network
    bounds = dict(bounds or {})
    if uniform_bits is None and not bounds:
        raise SettingsError(
            "give one or more bounds (such as --bitops 23.04G or --compression 10.66), or --uniform W/A"
        )
    choosing = [*map(option, bounds), *(["--pin"] if pins else []), *(["--bits"] if bits is not None else [])]
    if uniform_bits is not None and choosing:
        raise SettingsError(f"--uniform decides all bits: drop it, or {' and '.join(choosing)}")
    parsed = tuple(parse_bound(metric, text, network) for metric, text in bounds.items())
    label = budget_label(parsed, uniform_bits, weight_only)
    path = Path(output) if output is not None else Path(f"{Path(model or found.model.path).stem}.{label}.onnx")
    if path.suffix != ".onnx":
        raise SettingsError(f"-o {path}: the model's name must end in .onnx")
    allocation = (
        decide_uniform(found, uniform_bits, weight_only)
        if uniform_bits is not None
        else decide(found, parsed, pins, weight_only, alpha, criterion, bits)
    )
    allocation = dataclasses.replace(allocation, analysis_sha256=sha256_of(folder / "analysis.json"), rounding=rounding)
    prepared = prepare_again(found, model)
    _check_output(path, prepared)
    table = _grids(folder / "ranges.npz", prepared, allocation)
    if calib is not None or classes is not None:
        # where the user says they are now, there may be others
        calibration_again(found, prepared, calib, classes)
    bits_chosen = (allocation.weight_bits, allocation.activation_bits)
    if rounding == "gptq":
        codes = reconstruct(
            prepared.graph,
            network,
            prepared.placement,
            table,
            *bits_chosen,
            calibration_again(found, prepared, calib, classes),
            lambda layer, done, total: (reporter or Silent()).progress("rounding", layer, done, total),
        )
    else:
        codes = layer_codes(prepared.graph, network, table, *bits_chosen)
    dataset = calibration_again(found, prepared, calib, classes, VERIFICATION_SAMPLES)
    verification = emit(prepared, table, allocation, codes, dataset, path, label, storage)
    return Compressed(
        allocation=allocation,
        network=network,
        before=costs(network, *uniform(network, 32, 32)),
        model_path=path,
        allocation_path=path.with_suffix(".json"),
        file_bytes=path.stat().st_size,
        float_file_bytes=model_bytes(prepared.path),
        verification=verification,
    )


def emit(
    prepared: PreparedModel,
    table: GridTable,
    allocation: Allocation,
    codes: Mapping[str, LayerCodes],
    dataset: Dataset,
    path: Path,
    label: str,
    storage: str,
) -> Verification:
    """Write the model of an allocation and the allocation beside it, both or neither, after checking the model.

    Parameters
    ----------
    prepared, table, allocation, codes : what to write
    dataset : images for the check
    path : of the ONNX; the allocation gets the suffix .json
    label : the budget in one word, for the model's metadata
    storage : how weight codes lie in the file, a key of `emit.storage.STORAGES`
    """
    graph, network, placement = prepared.graph, prepared.network, prepared.placement
    bits = (allocation.weight_bits, allocation.activation_bits)
    reference = simulation(graph, network, placement, table, *bits, codes=codes)
    metadata = {
        "infoq_onnx.version": importlib.metadata.version("infoq-onnx"),
        "infoq_onnx.budget": label,
        "infoq_onnx.allocation": to_json(allocation),
        PREPROCESSING_KEY: to_json(dataset.preprocessing or preprocess.AS_IS),
    }
    model = qdq_model(graph, network, placement, table, *bits, codes, STORAGES[storage], metadata)
    with replacing(path) as onnx_file:
        onnx.save(model, onnx_file)
        verification = verify(onnx_file, graph, dataset, reference, str(path))
        write_text(path.with_suffix(".json"), to_json(allocation))
    return verification


def _grids(path: Path, prepared: PreparedModel, allocation: Allocation) -> GridTable:
    """Load the grids of an analysis, and make sure that those of an allocation are among them."""
    table = load_table(path)
    needed: list[tuple[Mapping[str, Collection[int]], Mapping[str, int]]] = [
        (table.activations, dict.fromkeys(prepared.placement.storage, BASELINE_BITS)),
        (table.activations, allocation.activation_bits),
        (table.weights, allocation.weight_bits),
    ]
    for grids, bits_of in needed:
        if not all(bits in grids.get(name, ()) for name, bits in bits_of.items()):
            raise AnalysisError(
                f"{path} was made by another version, and lacks grids that are needed; run analyze again"
            )
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
