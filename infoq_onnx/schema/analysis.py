"""The measurements of `analyze`, and the scores computed from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from infoq_onnx.schema.bits import Change, Unit
from infoq_onnx.schema.network import Network, Split
from infoq_onnx.schema.settings import DEFAULT_CRITERION, MeasurementSettings


@dataclass(frozen=True)
class Delta:
    """Difference of mutual information between the baseline and a trial at one tensor, in nats.

    A difference is None if it was not measured. At bit-widths that only selected observers see, an observer that is
    selected for one kind of information measures only that kind.
    """

    xl: float | None
    """SMI(X_E; L) of the baseline minus that of the trial."""
    xl_se: float | None
    """Standard error of `xl` over the projections (paired)."""
    ly: float | None
    """SMI(L; Y) of the baseline minus that of the trial."""
    ly_se: float | None
    """Standard error of `ly` over the projections (paired)."""


@dataclass(frozen=True)
class Trial:
    """The baseline with some units at fewer bits."""

    changes: tuple[Change, ...]
    """Differences from the baseline; a single unit in the trials of a sweep."""
    top1_drop: float
    """Top-1 accuracy of the baseline minus that of the trial, as a share of 1."""
    kl: float
    """Mean over images of KL(softmax of the baseline's logits ‖ softmax of the trial's logits), in nats."""
    deltas: dict[str, Delta]
    """Observed tensor → difference, only for candidates that the units can reach."""
    kl_se: float | None = None
    """Standard error of `kl` over images, in nats; None in analyses of version 3 and older."""
    soft_kl: tuple[float, ...] = ()
    """The same divergence with all logits divided by `simulate.running.divergence.TEMPERATURE`, in nats: means over
    each of a few groups of images; empty in analyses of version 3 and older."""

    @property
    def unit(self) -> Unit:
        """The changed unit, in a trial with one change."""
        return self._only.unit

    @property
    def bits(self) -> int:
        """Bits of the changed unit, in a trial with one change."""
        return self._only.bits

    @property
    def _only(self) -> Change:
        (change,) = self.changes
        return change


@dataclass(frozen=True)
class LocalError:
    """How much one unit at fewer bits changes the outputs of its own layers."""

    unit: Unit
    bits: int
    value: float
    """Mean squared difference from the baseline's outputs as a share of their variance, summed over the layers;
    interpolated at bit-widths that were not tried."""


@dataclass(frozen=True)
class Candidate:
    """A tensor at which trials are compared with the baseline, with the baseline's mutual information, in nats."""

    tensor: str
    baseline_xl: float
    """SMI(X_E; L) of the baseline."""
    baseline_ly: float
    """SMI(L; Y) of the baseline."""


@dataclass(frozen=True)
class Observer:
    """A candidate with the result of the observer selection."""

    tensor: str
    baseline_xl: float
    baseline_ly: float
    correlation_xl: float | None
    """Pearson r of |ΔSMI(X;L)| and the top-1 drop over low-bit trials; None with too few trials or no variation."""
    correlation_ly: float | None
    """The same for |ΔSMI(L;Y)|."""
    trials: int
    """Number of low-bit trials that observe the tensor."""
    selected_xl: bool
    selected_ly: bool
    reason: str
    """Reason for the selection, as text."""


@dataclass(frozen=True)
class Score:
    """Score of one unit at `bits` bits: how much worse the network gets. The score at 8 bits is 0."""

    unit: Unit
    bits: int
    value: float
    se: float
    """Standard error, in the units of `value`."""


@dataclass(frozen=True)
class ModelRef:
    """The analysed model."""

    path: str
    sha256: str
    float_top1: float | None
    """Top-1 accuracy of the float model on the calibration images, as a share of 1; None without labels."""
    baseline_top1: float | None
    """The same for the baseline, which has 8-bit weights and exact activations."""


@dataclass(frozen=True)
class Preprocessing:
    """Conversion of an image file to a tensor: (value / scale − mean) / std.

    Images that already have the model's size are not resized.
    """

    name: str
    """Name of the preset, or "custom"."""
    resize: int | None
    """Short side in pixels before the crop; None: no resizing."""
    crop: bool
    """Take the centre crop of the model's size."""
    scale: float
    """Divisor of the values 0…255."""
    mean: tuple[float, ...]
    """Per channel."""
    std: tuple[float, ...]
    """Per channel."""
    color: Literal["RGB", "BGR", "L"]
    layout: Literal["NCHW", "NHWC"]


@dataclass(frozen=True)
class CalibrationRef:
    """The images of an analysis."""

    path: str
    classes_path: str | None
    sha256: str
    """Hash of the chosen samples' bytes and labels, in order."""
    samples: int
    """Number of usable samples."""
    requested: int
    """Number of chosen samples, including unreadable ones."""
    labels: Literal["true", "predicted"]
    """"predicted": no labels were given, so the float model's predictions replace them."""
    targets: Literal["true", "predicted", "groups"]
    """Y of SMI(L; Y): the labels, or groups of images if too few images share a label."""
    preprocessing: Preprocessing


@dataclass(frozen=True)
class AddedSamples:
    """Images that were added to an analysis later."""

    samples: int
    """Number of usable samples."""
    requested: int
    """Number of chosen samples, including unreadable ones."""
    sha256: str
    """Hash of the samples' bytes and labels, in order."""


@dataclass(frozen=True)
class Analysis:
    """The measurements of `analyze`. `allocate` also needs scores, the model, the grids, and images for its check."""

    schema: int
    fingerprint: str
    """Hash of everything that determines a trial. Analyses with the same fingerprint have the same trials."""
    versions: dict[str, str]
    model: ModelRef
    calibration: CalibrationRef
    settings: MeasurementSettings
    network: Network
    candidates: tuple[Candidate, ...]
    trials: tuple[Trial, ...]
    splits: tuple[Split, ...] = ()
    """Channels that `network` reads in parts, unlike the normalised model."""
    added: tuple[AddedSamples, ...] = ()
    """Images used only for further trials. Ranges and rounding use the images of `calibration` alone."""
    local_errors: tuple[LocalError, ...] = ()
    """For every unit that was tried, at all bit-widths of the settings below 8; empty in older analyses."""
    tried_images: int | None = None
    """Number of images that trials used; None in older analyses, whose trials used all."""

    @property
    def default_criterion(self) -> str:
        """Criterion of `allocate`, if none is given."""
        return DEFAULT_CRITERION[self.settings.effort]


@dataclass(frozen=True)
class ScoreTable:
    """Scores by one criterion, with their origin."""

    schema: int
    criterion: str
    options: dict[str, Any]
    """Values of all options of the criterion."""
    package: str
    """Name and version of the distribution that provides the criterion, such as "infoq-onnx 0.1.0"."""
    measured_sha256: str
    """Hash of the `analysis.json` that the scores were computed from."""
    scores: tuple[Score, ...]
    observers: tuple[Observer, ...] = ()
    """All candidates with their selection; empty for a criterion without observers."""
    sha256: str = ""
    """Hash of the other fields (see `analyses.with_hash`); empty in a file of version 1."""


@dataclass(frozen=True)
class Analyzed:
    """An analysis with its scores, as printed by `analyze --json`."""

    analysis: Analysis
    scores: dict[str, ScoreTable]
    """Criterion → scores."""
