"""The settings of `analyze` and `allocate`, with their defaults; the command line takes its options from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from infoq_onnx.schema.bits import BITS

Observing = Literal["selected", "all"]
DEFAULT_CRITERION = "kl"
"""Whose scores bits are chosen by: it kept more than InfoQ's (docs/benchmarks/default_criterion.md)."""


@dataclass(frozen=True)
class MeasurementSettings:
    """What decides what is measured, besides the model and the images. The defaults are those of `analyze`."""

    samples: int | None = 1000
    """Images, at most; None: all there are. What an analysis holds is how many it were."""
    seed: int = 0
    """Decides the choice of images, the directions and the jitter."""
    bits: tuple[int, ...] = BITS
    """Widths that were tried, the baseline's among them."""
    encoder: str = "pca"
    """What stands for X: "pca", "self", "dinov2", or the path of an ONNX file."""
    projections: int = 128
    """Directions that a sliced mutual information is averaged over."""
    neighbours: int = 3
    """k of the estimators."""
    observers: Observing = "selected"
    """Who sees the widths above those that tell candidates apart: the candidates that tell harm, or all."""
    equalize: bool = True
    """First give the channels of a tensor ranges more alike, by factors and by splitting."""
    act_range: str = "mse"
    """How the ranges of activations are chosen, a key of `quantize.ranges.RANGES`."""
    trial_rounding: str = "gptq"
    """How the weights of a trial are rounded, a key of `simulate.rounding.ROUNDINGS`."""
    weight_only: bool = False
    """Only weights were tried; activations have no scores."""
    logits: str | None = None
    """The output with the class scores; None: the first one, or the only one that can be."""
    provider: str = "cpu"
    """What onnxruntime ran the networks on."""


@dataclass(frozen=True)
class AllocationSettings:
    """What `allocate` is asked for. The defaults are those of `allocate`."""

    bounds: Mapping[str, str] = field(default_factory=dict)
    """Metric (of `allocation.metrics`) → limit as the user writes it, e.g. {"bitops": "23.04G", "compression": "8"}."""
    tables: Sequence[str] = ()
    """Limits on costs that a file lists, e.g. "latency.csv:12ms"; see `allocation.metrics.table`."""
    uniform_bits: tuple[int, int] | None = None
    """(weights, activations): the same bits everywhere, instead of solving anything."""
    weight_only: bool = False
    """Leave activations at 8 bits."""
    alpha: float = 1.0
    """Factor on activation scores."""
    criterion: str = DEFAULT_CRITERION
    """Whose scores to use: "kl", how far predictions diverge; "infoq", the information that is lost, as published; or
    any other of `sensitivity.criteria`."""
    bits: Sequence[int] | None = None
    """Widths to choose among; None: all that were analysed."""
    pins: Sequence[str] = ()
    """E.g. "first=8/8", "conv1=4", "last=/8"."""
    rounding: str = "gptq"
    """"nearest", or "gptq", where later weights of a layer make up for the errors of earlier ones."""
    repair: bool = True
    """With gptq, also let each layer make up for the errors of the layers before it."""
    samples: int | None = None
    """How many images gptq rounds with, any of the calibration set; None: those of the analysis."""
    storage: str | None = None
    """"packed" (None): every weight in exactly its bits, and an absolute bound on the size holds for the whole file;
    "native": ONNX's narrow integers; "int8": one byte a weight."""
    file_format: str = "qdq"
    """"qdq" for onnxruntime; "qonnx" for FINN and Brevitas, with float weights and no storage to choose."""
    target: str = "any"
    """"any", or "x86-avx2": layers that would saturate on x86 processors without VNNI get weights of 7 bits in place of
    8; "x86-vnni" and "arm64" have no such limit."""
