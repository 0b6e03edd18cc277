"""What `analyze` measures, and the scores that are computed of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from infoq_onnx.schema.bits import Change, Unit
from infoq_onnx.schema.network import Network, Split
from infoq_onnx.schema.settings import MeasurementSettings


@dataclass(frozen=True)
class Delta:
    """How one observer's mutual information differs between a trial and the baseline, in nats.

    None where it was not asked for: of the widths that only observers see, those of one kind tell one difference.
    """

    xl: float | None
    """SMI(X_E; L) of the baseline minus that of the trial."""
    xl_se: float | None
    """Standard error of `xl` over the projections (paired)."""
    ly: float | None
    """SMI(L; Y) of the baseline minus that of the trial."""
    ly_se: float | None


@dataclass(frozen=True)
class Trial:
    """The baseline with some units at fewer bits."""

    changes: tuple[Change, ...]
    """What differs from the baseline; one unit in the trials of a sweep."""
    top1_drop: float
    """Share of images classified right by the baseline minus that of the trial."""
    kl: float
    """Mean over images of KL(softmax of the baseline's logits ‖ softmax of the trial's), in nats."""
    deltas: dict[str, Delta]
    """By observed tensor; only candidates that the units can reach."""

    @property
    def unit(self) -> Unit:
        """The one unit that is changed."""
        return self._only.unit

    @property
    def bits(self) -> int:
        """Bits of the one unit that is changed."""
        return self._only.bits

    @property
    def _only(self) -> Change:
        (change,) = self.changes
        return change


@dataclass(frozen=True)
class Candidate:
    """A tensor at which trials are compared with the baseline, and what the baseline tells there, in nats."""

    tensor: str
    baseline_xl: float
    """SMI(X_E; L)."""
    baseline_ly: float
    """SMI(L; Y)."""


@dataclass(frozen=True)
class Observer:
    """A candidate, with its standing as a measure of harm."""

    tensor: str
    baseline_xl: float
    baseline_ly: float
    correlation_xl: float | None
    """Pearson r of |ΔSMI(X;L)| against the top-1 drop of low-bit trials; None with too few trials to tell."""
    correlation_ly: float | None
    trials: int
    """Trials the correlations rest on."""
    selected_xl: bool
    selected_ly: bool
    reason: str


@dataclass(frozen=True)
class Score:
    """How much worse the network is with one unit at `bits` bits; 0 at 8 bits."""

    unit: Unit
    bits: int
    value: float
    se: float
    """Standard error, in the units of `value`."""


@dataclass(frozen=True)
class ModelRef:
    """The model an analysis was made of."""

    path: str
    sha256: str
    float_top1: float | None
    """Accuracy of the float model on the calibration images; None without labels."""
    baseline_top1: float | None
    """The same for the baseline: 8-bit weights, exact activations."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image file becomes a tensor. Resizing is skipped when the image has the model's size already."""

    name: str
    """The preset it came from, or "custom"."""
    resize: int | None
    """Short side in pixels before the crop; None: no resizing."""
    crop: bool
    """Take the centre crop of the model's size."""
    scale: float
    """Divide the 0…255 values by this …"""
    mean: tuple[float, ...]
    """… subtract this per channel …"""
    std: tuple[float, ...]
    """… and divide by this per channel."""
    color: Literal["RGB", "BGR", "L"]
    layout: Literal["NCHW", "NHWC"]


@dataclass(frozen=True)
class CalibrationRef:
    """The images an analysis was made with."""

    path: str
    classes_path: str | None
    sha256: str
    """Of the chosen samples' bytes and labels, in order."""
    samples: int
    requested: int
    """How many were chosen, the unreadable ones among them."""
    labels: Literal["true", "predicted"]
    """"predicted": no labels were given, the float model's argmax stands in for Y."""
    targets: Literal["true", "predicted", "groups"]
    """What Y is in SMI(L; Y): those labels, or groups of images where too few share a label."""
    preprocessing: Preprocessing


@dataclass(frozen=True)
class AddedSamples:
    """Further images that an analysis was extended by."""

    samples: int
    requested: int
    """How many were chosen, the unreadable ones among them."""
    sha256: str
    """Of the samples' bytes and labels, in order."""


@dataclass(frozen=True)
class Analysis:
    """What `analyze` measured. `allocate` needs besides it scores, the model, grids, and images for its check."""

    schema: int
    fingerprint: str
    """Hash of all that decides a trial; trials of two analyses with the same one are the same."""
    versions: dict[str, str]
    model: ModelRef
    calibration: CalibrationRef
    settings: MeasurementSettings
    network: Network
    candidates: tuple[Candidate, ...]
    trials: tuple[Trial, ...]
    splits: tuple[Split, ...] = ()
    """What `network` has that the normalised model has not."""
    added: tuple[AddedSamples, ...] = ()
    """Images that trials were made on besides those of `calibration`, which ranges and rounding rest on."""


@dataclass(frozen=True)
class ScoreTable:
    """Scores by one criterion, with what they were computed of and how."""

    schema: int
    criterion: str
    options: dict[str, Any]
    """The criterion's own options, all of them."""
    package: str
    """Distribution and version that the criterion comes from, such as "infoq-onnx 0.1.0"."""
    measured_sha256: str
    """Of the `analysis.json` it was computed of."""
    scores: tuple[Score, ...]
    observers: tuple[Observer, ...] = ()
    """Candidates with their selection; empty for a criterion that has none."""


@dataclass(frozen=True)
class Analyzed:
    """An analysis with its scores, as `analyze --json` prints them."""

    analysis: Analysis
    scores: dict[str, ScoreTable]
    """By criterion."""
