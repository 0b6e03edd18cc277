"""`finetune`: train the model of an allocation to predict like the float model, and write it again."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from infoq_onnx.allocation.costs import float_costs
from infoq_onnx.analyses import current, find_analysis, read_analysis
from infoq_onnx.data import preprocess
from infoq_onnx.data.dataset import Dataset
from infoq_onnx.emit.reading import read_codes
from infoq_onnx.emit.storage import STORAGES
from infoq_onnx.emit.targets import TARGETS, meeting_at_8_bits
from infoq_onnx.errors import (
    AnalysisError,
    DataError,
    MissingDependencyError,
    ModelError,
    SettingsError,
    TrainingError,
    setting,
)
from infoq_onnx.files import require_writable, sha256_of
from infoq_onnx.graph.external import model_bytes
from infoq_onnx.pipeline.emitting import BUDGET_KEY, CHECKED_IMAGES, Emission, require_replaceable
from infoq_onnx.pipeline.resolving import load_network
from infoq_onnx.preparation import PreparedModel, load_samples, report_samples
from infoq_onnx.reporter import Reporter, Silent
from infoq_onnx.schema import (
    Allocation,
    Analysis,
    Compressed,
    Finetuned,
    FinetuneSettings,
    OtherVersion,
    Training,
    Verification,
    counted,
    read,
    require_types,
    typed,
)
from infoq_onnx.simulate.quantizers.quantizable import Quantizable
from infoq_onnx.simulate.simulation import LayerCodes, fitting, with_bias

if TYPE_CHECKING:
    from infoq_onnx.training.student import Student
    from infoq_onnx.training.trainer import Outcome

_LEAST_IMAGES = 2


@typed
def finetune(
    allocation: Path | str,
    train: Path | str,
    settings: FinetuneSettings | None = None,
    *,
    val: Path | str | None = None,
    classes: Path | str | None = None,
    analysis: Path | str | None = None,
    model: Path | str | None = None,
    storage: str | None = None,
    output: Path | str | None = None,
    force: bool = False,
    export_best: bool = False,
    reporter: Reporter | None = None,
    **changes: Any,
) -> Finetuned | None:
    """Train the model of an allocation to predict what the float model predicts, and write it as ONNX again.

    A training that is stopped or killed goes on from its last checkpoint when it is called again.

    Parameters
    ----------
    allocation : the allocation (.json) that `allocate` wrote, or the model beside it
    train : images to train with, in the formats of `calib` in `analyze`; labels are needed only if they are to count
    settings : the settings; None: the defaults
    val : images that choose the best state; None: a part of those in `train`
    classes : file of class names of `train` and `val`, as in `analyze`
    analysis : the analysis folder; None: the newest one in the working folder
    model : current path of the float model, if it moved since the analysis
    storage : see `AllocationSettings`
    output : ONNX file to write; the allocation is written next to it as .json; None: `<allocation>.finetuned.onnx`
    force : replace a file of that name that infoq-onnx did not write
    export_best : also write the model whenever it got better on held-out images
    reporter : receives progress
    changes : fields of `FinetuneSettings` that replace those of `settings`

    Returns
    -------
    Finetuned or None
        None in those processes of `torchrun` that do not write the model.

    Raises
    ------
    TrainingError
        Training did not improve the model on held-out images; nothing was written.
    VerificationError
        The written model did not compute what was simulated, and was removed.
    InfoQError
        See `infoq_onnx.errors`.
    """
    _require_torch()
    wanted = dataclasses.replace(settings or FinetuneSettings(), **changes)
    # one of the processes of torchrun tells how it goes
    reporter = reporter if reporter is not None and os.environ.get("RANK", "0") == "0" else Silent()
    require_types(wanted)
    _check(wanted, storage)
    start = _load(Path(allocation), analysis, model, storage, output, reporter, force=force)
    images, held_out = _images(start, wanted, Path(train), val, classes, reporter)
    return _trained(start, wanted, images, held_out, reporter, export_best=export_best)


@dataclass(frozen=True)
class _Start:
    """What a training begins with."""

    allocation: Allocation
    model_sha256: str
    """Hash of the emitted model."""
    found: Analysis
    prepared: PreparedModel
    of: Quantizable
    codes: dict[str, LayerCodes]
    emission: Emission
    path: Path
    """ONNX file to write."""

    @property
    def checkpoint(self) -> Path:
        """File of checkpoints."""
        return self.path.with_suffix(".checkpoint")


def _require_torch() -> None:
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401, TID251
    except ImportError as error:
        raise MissingDependencyError(
            f"fine-tuning needs PyTorch and safetensors ({error}); install them with pip install 'infoq-onnx[finetune]'"
        ) from error


def _check(settings: FinetuneSettings, storage: str | None) -> None:
    """Refuse values that are out of range."""
    if storage is not None and storage not in STORAGES:
        raise SettingsError(f"{setting('storage')} {storage}: choose {' or '.join(STORAGES)}")
    for name in ("epochs", "batch", "patience", "checkpoint_steps"):
        if getattr(settings, name) < 1:
            raise SettingsError(f"{setting(name)} {getattr(settings, name)}: give 1 or more")
    for name, low, high in (("warmup", 0, 1), ("labels", 0, 1), ("weight_decay", 0, 1e6)):
        if not low <= getattr(settings, name) <= high:
            raise SettingsError(f"{setting(name)} {getattr(settings, name):g}: give {low:g} to {high:g}")
    if settings.mode == "reconstruct" and settings.labels:
        raise SettingsError(f"{setting('mode')} reconstruct uses no labels: drop {setting('labels')}, or give lsq")
    if settings.mode == "reconstruct" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError(f"{setting('mode')} reconstruct trains in one process: start it without torchrun")
    if not 0 < settings.held_out < 1:
        raise SettingsError(f"{setting('held_out')} {settings.held_out:g}: give a share between 0 and 1")
    if not 0 < settings.rate <= 1:
        raise SettingsError(f"{setting('learning_rate')} {settings.rate:g}: give a number above 0, up to 1")
    if settings.max_seconds is not None and not settings.max_seconds > 0:
        raise SettingsError(f"{setting('max_seconds')} {settings.max_seconds:g}: give a number above 0")
    if settings.samples is not None and settings.samples < _LEAST_IMAGES:
        raise SettingsError(f"{setting('samples')} {settings.samples}: give {_LEAST_IMAGES} or more")
    if settings.seed < 0:
        raise SettingsError(f"{setting('seed')} {settings.seed}: give 0 or more")


def _load(
    given: Path,
    analysis: Path | str | None,
    model: Path | str | None,
    storage: str | None,
    output: Path | str | None,
    reporter: Reporter,
    *,
    force: bool,
) -> _Start:
    emitted, written, allocation = _read_allocation(given)
    folder = Path(analysis) if analysis is not None else find_analysis()
    found, measurement = read_analysis(folder), current(folder)
    if sha256_of(measurement.analysis) != allocation.analysis_sha256:
        raise AnalysisError(
            f"{given} was not made from the analysis {folder}; say where its analysis is with {setting('analysis')}, "
            "or run allocate on this one"
        )
    path = Path(output) if output is not None else emitted.with_suffix(".finetuned.onnx")
    if path.suffix.lower() != ".onnx":
        raise SettingsError(f"{setting('output')} {path}: the model's name must end in .onnx")
    prepared, grids = load_network(found, measurement, model)
    require_replaceable(path, prepared.path, force=force)
    if path.resolve() == emitted.resolve():
        raise SettingsError(f"{setting('output')} {path} is the model that training begins with; choose another name")
    require_writable(path)
    of = Quantizable(prepared.graph, prepared.network, prepared.placement, grids)
    codes = read_codes(written, of, allocation.bits, str(emitted))
    label = next((entry.value for entry in written.metadata_props if entry.key == BUDGET_KEY), "")
    emission = Emission(of, storage or "packed", label, found.calibration.preprocessing)
    reporter.note(f"training begins with {emitted}")
    return _Start(allocation, sha256_of(emitted), found, prepared, of, codes, emission, path)


def _read_allocation(given: Path) -> tuple[Path, onnx.ModelProto, Allocation]:
    """Return the file of the emitted model, the model, and its allocation. Either file is given."""
    emitted, file = given.with_suffix(".onnx"), given.with_suffix(".json")
    for path in (file, emitted):
        if not path.is_file():
            raise ModelError(
                f"{path} is not there; give an allocation that {setting('allocate')} wrote, with its model beside it"
            )
    try:
        allocation = read(Allocation, file.read_text(encoding="utf-8"))
    except OtherVersion as error:
        raise ModelError(f"{file} {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not an allocation of infoq-onnx ({error}); run allocate again") from error
    if allocation.training is not None:
        raise ModelError(f"{given} is fine-tuned already; give the allocation that its training began with")
    try:
        model = onnx.load(emitted)
    except (OSError, ValueError, DecodeError) as error:
        raise ModelError(f"cannot read {emitted} ({error}); run allocate again") from error
    if any(node.op_type == "Quant" for node in model.graph.node):
        raise ModelError(f"{emitted} has Quant nodes; run allocate with {setting('file_format')} qdq")
    return emitted, model, allocation


def _images(
    start: _Start,
    settings: FinetuneSettings,
    train: Path,
    val: Path | str | None,
    classes: Path | str | None,
    reporter: Reporter,
) -> tuple[Dataset, Dataset]:
    """Load the images to train with, and those that choose the best state."""
    known = start.found.calibration.preprocessing
    recipe = None if known == preprocess.AS_IS else known
    images = load_samples(start.prepared, train, classes, recipe, settings.samples, settings.seed)
    report_samples(images, None, reporter)
    if val is not None:
        held_out = load_samples(start.prepared, val, classes, recipe, None, settings.seed)
        report_samples(held_out, None, reporter)
    else:
        if len(images) < _LEAST_IMAGES:
            raise DataError(
                f"{train} holds {len(images)} image; give {_LEAST_IMAGES} or more, or others with {setting('val')}"
            )
        order = np.random.default_rng(settings.seed).permutation(len(images))
        count = min(max(1, round(settings.held_out * len(images))), len(images) - 1)
        held_out, images = images.part(np.sort(order[:count])), images.part(np.sort(order[count:]))
    if settings.labels and (images.labels is None or held_out.labels is None):
        raise DataError(
            f"{setting('labels')} {settings.labels:g}: the images have no labels; put them in class folders, or drop it"
        )
    return images, held_out


def _trained(
    start: _Start,
    settings: FinetuneSettings,
    images: Dataset,
    held_out: Dataset,
    reporter: Reporter,
    *,
    export_best: bool,
) -> Finetuned | None:
    from infoq_onnx.torch_graph.graph_module import GraphModule
    from infoq_onnx.training import distributed
    from infoq_onnx.training.reconstruction import Reconstructor
    from infoq_onnx.training.student import Student
    from infoq_onnx.training.trainer import Trainer

    began = time.monotonic()
    student = Student(start.of, start.allocation.bits, start.codes, settings.mode)
    teacher = GraphModule(start.of.graph, batch=start.of.graph.batch)
    identity = f"{start.model_sha256} {images.sha256} {held_out.sha256}"
    way = Reconstructor if settings.mode == "reconstruct" else Trainer
    check = images.part(np.arange(min(CHECKED_IMAGES["qdq"], len(images))))

    def write(outcome: Outcome) -> Verification:
        return _write(start, student, _record(start, settings, images, outcome), check)

    with _memory_errors():
        trainer = way(student, teacher, images, held_out, settings, start.checkpoint, identity, reporter)
        outcome = trainer.run(write if export_best else None)
    if not distributed.is_first():
        return None
    start.checkpoint.unlink(missing_ok=True)
    if outcome.best_step == 0:
        before = outcome.before
        raise TrainingError(
            f"{outcome.steps} {counted(settings.mode)} did not improve the model on {before.images} held-out images "
            f"(loss {before.loss:.4g}), and nothing was written; give more images to {setting('train')}, another "
            f"{setting('learning_rate')}, or another {setting('mode')}"
        )
    verification = write(outcome)
    network = start.prepared.network
    compressed = Compressed(
        allocation=_record(start, settings, images, outcome),
        network=network,
        before=float_costs(network),
        model_path=start.path,
        allocation_path=start.path.with_suffix(".json"),
        file_bytes=start.path.stat().st_size,
        float_file_bytes=model_bytes(start.prepared.path),
        verification=verification,
    )
    return Finetuned(compressed, time.monotonic() - began)


def _record(start: _Start, settings: FinetuneSettings, images: Dataset, outcome: Outcome) -> Allocation:
    training = Training(
        mode=settings.mode,
        settings_sha256=hashlib.sha256(settings.identity.encode()).hexdigest(),
        seed=settings.seed,
        images=len(images),
        images_sha256=images.sha256,
        steps=outcome.steps,
        best_step=outcome.best_step,
        before=outcome.before,
        after=outcome.after,
    )
    return dataclasses.replace(start.allocation, training=training)


def _write(start: _Start, student: Student, allocation: Allocation, check: Dataset) -> Verification:
    """Write and verify the student as it is now."""
    exported = student.export()
    codes = dict(exported.codes)
    if TARGETS[allocation.target]:
        exact = meeting_at_8_bits(exported.of, allocation.bits)
        for layer in exported.of.network.layers:
            if layer.name in exact:
                held = fitting(layer, codes[layer.name].rounded)
                codes[layer.name] = with_bias(layer, held, exported.of.grids, allocation.activation_bits)
    emission = dataclasses.replace(start.emission, of=exported.of)
    return emission.write(allocation, codes, check, start.path)


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn torch's errors about memory into a MemoryError."""
    try:
        yield
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        raise MemoryError(str(error).splitlines()[0]) from error
