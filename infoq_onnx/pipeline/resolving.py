"""Preparation of `allocate`: check its settings, and load the analysis, the model and the grids."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infoq_onnx.allocation.bounds import parse_budget, parse_table
from infoq_onnx.allocation.costs import Budget
from infoq_onnx.allocation.decide import budget_label, require_analysed
from infoq_onnx.analyses import Measurement, current, find_analysis, read_analysis
from infoq_onnx.data.dataset import Dataset
from infoq_onnx.emit.qonnx import require_qonnx
from infoq_onnx.emit.storage import STORAGES
from infoq_onnx.emit.targets import TARGETS, require_target, saturating_layers
from infoq_onnx.errors import AnalysisError, SettingsError, enumerated, setting
from infoq_onnx.execute.resources import Resources
from infoq_onnx.files import require_writable
from infoq_onnx.pipeline.emitting import CHECKED_IMAGES, require_replaceable
from infoq_onnx.preparation import PreparedModel, calibration_again, memory_bytes, prepare_again
from infoq_onnx.quantize.table import GridTable, load_table
from infoq_onnx.reporter import Reporter
from infoq_onnx.schema import (
    BASELINE_BITS,
    EXACT_BITS,
    AllocationSettings,
    Analysis,
    require_types,
)
from infoq_onnx.sensitivity.criteria import get_criteria, get_criterion
from infoq_onnx.simulate.equalization.equalize import equalized
from infoq_onnx.simulate.quantizers.quantizable import Quantizable
from infoq_onnx.simulate.rounding import RoundingMethod, get_rounding
from infoq_onnx.simulate.running.spill import Spill


@dataclass(frozen=True)
class Places:
    """Current paths of files that moved since the analysis; None: the path of the analysis."""

    model: Path | str | None = None
    calib: Path | str | None = None
    classes: Path | str | None = None


@dataclass(frozen=True)
class Request:
    """All inputs of an allocation."""

    settings: AllocationSettings
    places: Places
    found: Analysis
    measurement: Measurement
    bounds: tuple[Budget, ...]
    label: str
    """Label of the budget, for file names."""
    path: Path
    """ONNX file to write."""
    prepared: PreparedModel
    """The analysed model, equalized."""
    grids: GridTable
    saturating: frozenset[str]
    """Layers whose sums may saturate with 8-bit weights on the target."""
    share: int | None
    """Memory for a large set of arrays, in bytes; None: no limit."""
    reporter: Reporter

    @property
    def quantizable(self) -> Quantizable:
        """The network with the placement and the grids of its quantizers."""
        return Quantizable(self.prepared.graph, self.prepared.network, self.prepared.placement, self.grids)

    @property
    def fits_pairs(self) -> bool:
        """Whether the sum of each pair of products must fit 16 bits."""
        return TARGETS[self.settings.target] and self.settings.file_format == "qdq"

    @property
    def storage(self) -> str:
        """Storage format of the weight codes."""
        return self.settings.storage or "packed"

    @property
    def method(self) -> RoundingMethod:
        """Rounding method of the weights."""
        return get_rounding(self.settings.rounding)

    @property
    def repair(self) -> bool:
        """Whether each layer compensates for the errors of the layers before it."""
        return self.method.sequential is not None and self.settings.repair

    @property
    def spill(self) -> Spill | None:
        """Files for activations that would take too much memory; None without a memory limit."""
        return None if self.share is None else Spill(self.path.parent, self.share)

    @functools.cached_property
    def images(self) -> Dataset:
        """Images for the rounding of weights, loaded at the first use."""
        return self._load(self.settings.samples)

    @functools.cached_property
    def check_images(self) -> Dataset:
        """Images for the check of the written model. Any images will do, so unreadable ones are left out."""
        few = min(CHECKED_IMAGES[self.settings.file_format], self.found.calibration.samples)
        return self._load(few, tolerated_percent=100)

    def _load(self, samples: int | None, **tolerated: int) -> Dataset:
        places = self.places
        return calibration_again(
            self.found, self.prepared, places.calib, places.classes, samples, cache_bytes=self.share, **tolerated
        )


def resolve(
    analysis: Path | str | None,
    settings: AllocationSettings,
    places: Places,
    memory: str | int | None,
    output: Path | str | None,
    reporter: Reporter,
    force: bool = False,
) -> Request:
    """Check the settings, and load the inputs of an allocation.

    Parameters
    ----------
    analysis, settings, memory, output, reporter, force : see `allocate`
    places : current paths of the model and the images

    Returns
    -------
    Request

    Raises
    ------
    InfoQError
        An input is missing or cannot be used, or settings contradict each other.
    """
    require_types(settings)
    _check_settings(settings)
    share = Resources(memory=memory_bytes(memory)).share
    folder = Path(analysis) if analysis is not None else find_analysis()
    found, measurement = read_analysis(folder), current(folder)
    _check_uniform(settings, found)
    bounds = (
        *(parse_budget(metric, str(text), found.network) for metric, text in settings.bounds.items()),
        *(parse_table(text, found.network) for text in settings.tables),
    )
    label = budget_label(bounds, settings.uniform_bits, settings.weight_only)
    stem = Path(places.model or found.model.path).stem
    path = Path(output) if output is not None else Path(f"{stem}.{label}.onnx")
    if path.suffix.lower() != ".onnx":
        raise SettingsError(f"{setting('output')} {path}: the model's name must end in .onnx")
    prepared, grids = load_network(found, measurement, places.model)
    require_replaceable(path, prepared.path, force=force)
    require_writable(path)
    request = Request(
        settings, places, found, measurement, bounds, label, path, prepared, grids, frozenset(), share, reporter
    )
    if request.fits_pairs:
        request = dataclasses.replace(request, saturating=saturating_layers(request.quantizable))
    if settings.samples is not None or places.calib is not None or places.classes is not None:
        # the new paths may hold other images than those of the analysis: check now
        _ = request.images
    return request


def load_network(
    found: Analysis, measurement: Measurement, model: Path | str | None
) -> tuple[PreparedModel, GridTable]:
    """Load the analysed model, equalize it, and load its grids.

    Parameters
    ----------
    found, measurement : the analysis
    model : current path of the model; None: the path of the analysis

    Raises
    ------
    ModelError, AnalysisError
        The model or the grids are missing, or do not belong together.
    """
    prepared = prepare_again(found, model)
    grids = _load_grids(measurement.grids, prepared, found.settings.bits)
    graph = equalized(prepared.graph, found.network, grids.factors)
    return dataclasses.replace(prepared, graph=graph), grids


def _check_settings(settings: AllocationSettings) -> None:
    """Check that the settings are valid and consistent."""
    if settings.storage is not None and settings.storage not in STORAGES:
        raise SettingsError(f"{setting('storage')} {settings.storage}: choose {' or '.join(STORAGES)}")
    method = get_rounding(settings.rounding)
    require_target(settings.target)
    if settings.file_format not in CHECKED_IMAGES:
        raise SettingsError(f"{setting('file_format')} {settings.file_format}: choose {' or '.join(CHECKED_IMAGES)}")
    if settings.file_format == "qonnx":
        if settings.storage is not None:
            raise SettingsError(
                f"{setting('storage')} {settings.storage}: {setting('file_format')} qonnx keeps weights in float; drop "
                "one of the two"
            )
        require_qonnx()
    if settings.samples is not None and not method.reads_images:
        raise SettingsError(
            f"{setting('samples')} {settings.samples}: {setting('rounding')} {settings.rounding} looks at no images; "
            "drop one of the two"
        )
    if settings.uniform_bits is None and not settings.bounds and not settings.tables:
        # what else chooses bits is of no use with uniform bits
        instead = "" if _choosing(settings) else f", or {setting('uniform_bits')} W/A"
        raise SettingsError(
            f"give one or more bounds (such as {setting('bitops')} 23.04G or {setting('compression')} 10.66){instead}"
        )
    if settings.uniform_bits is None and settings.criterion is not None:
        get_criterion(settings.criterion)


def _choosing(settings: AllocationSettings) -> list[str]:
    """Name the settings that choose bits, apart from uniform bits."""
    return [
        *(setting(metric) for metric in settings.bounds),
        *([setting("tables")] if settings.tables else []),
        *([setting("pins")] if settings.pins else []),
        *([setting("bits")] if settings.bits is not None else []),
        *([setting("alpha")] if settings.alpha != AllocationSettings.alpha else []),
        *([setting("criterion")] if settings.criterion is not None else []),
    ]


def _check_uniform(settings: AllocationSettings, found: Analysis) -> None:
    """Check that uniform bits were analysed, and that nothing else is to choose bits."""
    if settings.uniform_bits is None:
        return
    require_analysed(found, settings.uniform_bits, settings.weight_only)
    choosing = _choosing(settings)
    if not choosing:
        return
    uniform, others = setting("uniform_bits"), enumerated(choosing)
    if settings.criterion is not None and settings.criterion not in get_criteria():
        # without uniform bits it would be refused, too
        told = f"drop {others}"
    elif settings.bounds or settings.tables:
        told = f"drop it, or {others}"
    else:
        told = f"drop {others}, or give a budget instead of {uniform}"
    raise SettingsError(f"{uniform} decides all bits: {told}")


def _load_grids(path: Path, prepared: PreparedModel, bits: Sequence[int]) -> GridTable:
    """Load the grids of an analysis, and check that all grids that may be needed are present."""
    table = load_table(path, prepared.network)
    layers = [layer.name for layer in prepared.network.layers if layer.weight is not None]
    complete = (
        all(BASELINE_BITS in table.activations.get(tensor, ()) for tensor in prepared.placement.storage)
        and all(set(bits) <= set(table.activations.get(group.name, ())) for group in prepared.network.groups)
        and all({*bits, EXACT_BITS, BASELINE_BITS} <= set(table.weights.get(layer, ())) for layer in layers)
    )
    if not complete:
        raise AnalysisError(f"{path} was made by another version, and lacks grids that are needed; run analyze again")
    return table
