"""The settings of `analyze` and `allocate`, with their defaults. The command line uses the same defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from infoq_onnx.schema.bits import BITS

Observing = Literal["none", "selected", "all"]
OBSERVING: tuple[Observing, ...] = get_args(Observing)
Effort = Literal["quick", "normal", "full"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)
DEFAULT_CRITERION = {"full": "kl", "normal": "kl-pooled", "quick": "kl-pooled"}
"""Default criterion of `allocate`, by the effort of the analysis. The divergence of predictions kept more accuracy than
InfoQ's criterion (docs/benchmarks/default_criterion.md). It is pooled where few bit-widths and images were tried
(docs/benchmarks/effort.md)."""


@dataclass(frozen=True)
class MeasurementSettings:
    """The settings of `analyze`, with its defaults."""

    samples: int | None = 1000
    """Maximum number of images; None: all images. In a finished analysis, the number of images used."""
    seed: int = 0
    """Seed of the choice of images, the directions and the jitter."""
    bits: tuple[int, ...] = BITS
    """Bit-widths to choose among later, including the baseline's."""
    effort: Effort = "normal"
    """How much trials measure. "normal": only low bit-widths, and as many images as the decision needs. "quick": only
    low bit-widths, and a few images. "full": all images and all bit-widths. Ranges use all images."""
    encoder: str = "pca"
    """Encoder of X: "pca", "self", "dinov2", or the path of an ONNX file."""
    projections: int = 128
    """Number of directions of a sliced mutual information."""
    neighbours: int = 3
    """Number of neighbours of the estimators, k."""
    observers: Observing | None = None
    """At which tensors mutual information is measured. "selected": at all candidates in the trials that select
    observers, then at the selected ones. "all": at all candidates. "none": nowhere, which is faster; InfoQ's criteria
    then have no scores. None: "selected" at full effort, else "none"."""
    equalize: bool = True
    """Make the ranges of a tensor's channels more equal first, by factors and by splitting channels."""
    act_range: str = "mse"
    """Method that chooses the ranges of activations, a key of `quantize.ranges.RANGES`."""
    trial_rounding: str = "gptq"
    """Method that rounds the weights of trials, a key of `simulate.rounding.ROUNDINGS`."""
    weight_only: bool = False
    """Only weights were tried; activations have no scores."""
    logits: str | None = None
    """The output with the class scores; None: the first one, or the only one that can be."""
    provider: str = "cpu"
    """onnxruntime execution provider that runs the networks."""

    @property
    def observing(self) -> Observing:
        """`observers`, or their default."""
        return self.observers or ("selected" if self.effort == "full" else "none")


@dataclass(frozen=True)
class AllocationSettings:
    """The settings of `allocate`, with its defaults."""

    bounds: Mapping[str, str | float] = field(default_factory=dict)
    """Metric (of `allocation.metrics`) → limit as text, e.g. {"bitops": "23.04G", "compression": "8"}."""
    tables: Sequence[str] = ()
    """Limits on costs listed in files, e.g. "latency.csv:12ms"; see `allocation.metrics.table`."""
    uniform_bits: tuple[int, int] | None = None
    """(weights, activations): give all units the same bits instead of solving the integer program."""
    weight_only: bool = False
    """Keep activations at 8 bits."""
    alpha: float = 1.0
    """Factor on activation scores."""
    criterion: str | None = None
    """Criterion of the scores: "kl-pooled", the divergence of predictions; "infoq", the information lost, as published;
    or any other of `sensitivity.criteria`. None: see `DEFAULT_CRITERION`."""
    bits: Sequence[int] | None = None
    """Bit-widths to choose among; None: all analysed ones."""
    pins: Sequence[str] = ()
    """Fixed bits of layers, e.g. "first=8/8", "conv1=4", "last=/8"."""
    rounding: str = "gptq"
    """"nearest", or "gptq", in which later weights of a layer compensate for the errors of earlier weights."""
    repair: bool = True
    """With gptq, each layer also compensates for the errors of the layers before it."""
    samples: int | None = None
    """Number of images of the calibration set that gptq rounds with; None: the images of the analysis."""
    storage: str | None = None
    """"packed" (None): every weight takes exactly its bits, and an absolute bound on the size holds for the whole file;
    "native": ONNX's narrow integers; "int8": one byte per weight."""
    file_format: str = "qdq"
    """"qdq" for onnxruntime; "qonnx" for FINN and Brevitas, with float weights and no choice of storage."""
    target: str = "any"
    """"any" and "x86-avx2": layers that would saturate on x86 processors without VNNI get 7-bit instead of 8-bit
    weights; "x86-vnni" and "arm64": no such limit."""
