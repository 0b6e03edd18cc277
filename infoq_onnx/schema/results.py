"""What the verbs return."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infoq_onnx.schema.allocation import Allocation, Costs
from infoq_onnx.schema.network import Network


@dataclass(frozen=True)
class CriterionInfo:
    """A criterion, as `infoq-onnx criteria` lists it."""

    name: str
    summary: str
    source: str
    """Where it is published."""
    needs: tuple[str, ...]
    passes: str
    """How often the images go through the network for it."""
    options: dict[str, tuple[Any, str]]
    """Default and help of each of its own options."""
    package: str


@dataclass(frozen=True)
class CriteriaList:
    """All criteria there are."""

    criteria: tuple[CriterionInfo, ...]


@dataclass(frozen=True)
class Kernel:
    """What onnxruntime runs in place of one layer of a model."""

    layer: str
    op_type: str
    runs: str
    """Operator that is run."""
    integer: bool
    reason: str
    """What keeps it in float; empty for an integer kernel."""
    saturates: bool = False
    """Whether sums may saturate on x86 processors without VNNI."""


@dataclass(frozen=True)
class Lint:
    """What `lint` found."""

    onnxruntime: str
    """Version."""
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True)
class Verification:
    """How far an emitted model is from its simulation, on some images."""

    images: int
    max_difference: float
    """Largest absolute difference of a logit, integer kernels against the simulation."""
    relative_rms: float
    """Root mean square of the differences over the standard deviation of the simulation's logits."""
    agreement: float
    """Share of images with the same top-1 class."""
    relative_rms_unfused: float
    """The same as `relative_rms` with every node computed as written."""
    noise_rms: float
    """`relative_rms` of the simulation itself, run in another way (see `emit.verify`) …"""
    noise_agreement: float
    """… and its share of images with the same top-1 class."""
    kernels: tuple[Kernel, ...] = ()
    """What onnxruntime runs in place of each layer."""
    emulated: bool = False
    """Whether this processor's integer kernels saturate with the model's weights, and those of others were emulated."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. Accuracies are shares of 1."""

    images: int
    top1: float | None
    """None without labels."""
    top1_interval: tuple[float, float] | None
    """95 % confidence interval of top-1 (Wilson)."""
    top5: float | None
    agreement: float | None
    """Share of images on which the model predicts what the reference predicts; None without a reference."""
    reference_top1: float | None
    top1_difference: float | None
    """Top-1 minus the reference's, on the same images …"""
    top1_difference_interval: tuple[float, float] | None
    """… with its 95 % confidence interval from the pairs that differ (Tango)."""
    file_bytes: int
    """With external data."""
    reference_bytes: int | None
    latency_ms: float
    """Median over runs of one batch: the smallest that the model, and the reference where there is one, takes."""
    reference_latency_ms: float | None
    latency_batch: int
    reference_latency_batch: int | None
    """Other than `latency_batch` where both are fixed to a batch size of their own."""


@dataclass(frozen=True)
class Plan:
    """What an analysis would cost."""

    images: int
    trials: int
    passes: float
    """Whole passes over the images that all trials together amount to."""
    workers: int
    """Processes that would run them."""
    images_a_second: float
    """Through the whole network, observers included, in the probe."""
    seconds: float
    """Of all trials, estimated; ranges and rounding come before them."""
    bytes: float
    """Resident memory of all processes at once, estimated."""


@dataclass(frozen=True)
class Compressed:
    """A finished allocation: what was decided, what was written, and how well the file matches the simulation."""

    allocation: Allocation
    network: Network
    before: Costs
    """Costs of the float model, counted at 32/32."""
    model_path: Path
    allocation_path: Path
    file_bytes: int
    float_file_bytes: int
    verification: Verification


@dataclass(frozen=True)
class DemoRow:
    """One model of the demo's table."""

    name: str
    costs: Costs
    evaluation: Evaluation
