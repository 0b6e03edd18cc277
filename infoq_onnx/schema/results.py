"""The results of the verbs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infoq_onnx.schema.allocation import Allocation, Costs
from infoq_onnx.schema.network import Network


@dataclass(frozen=True)
class CriterionInfo:
    """A criterion, as listed by `infoq-onnx criteria`."""

    name: str
    summary: str
    source: str
    """Publication."""
    needs: tuple[str, ...]
    passes: str
    """Passes of the images through the network that the criterion requires, as text."""
    options: dict[str, tuple[Any, str]]
    """Option → default and help text."""
    package: str
    """Name and version of the distribution that provides the criterion."""


@dataclass(frozen=True)
class CriteriaList:
    """All available criteria."""

    criteria: tuple[CriterionInfo, ...]


@dataclass(frozen=True)
class Kernel:
    """The kernel that onnxruntime runs for one layer of a model."""

    layer: str
    op_type: str
    runs: str
    """Operator that onnxruntime runs."""
    integer: bool
    """Whether the operator is an integer kernel."""
    reason: str
    """Reason why the layer runs in float; empty for an integer kernel."""
    saturates: bool = False
    """Whether sums may saturate on x86 processors without VNNI."""


@dataclass(frozen=True)
class Lint:
    """The result of `lint`."""

    onnxruntime: str
    """Version of onnxruntime."""
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True)
class Verification:
    """Differences between an emitted model and its simulation, on some images."""

    images: int
    """Number of images."""
    max_difference: float
    """Largest absolute difference of a logit between integer kernels and the simulation."""
    relative_rms: float
    """Root mean square of the differences, divided by the standard deviation of the simulation's logits."""
    agreement: float
    """Share of images with the same top-1 class."""
    relative_rms_unfused: float
    """`relative_rms` of the model run node by node, without fused kernels."""
    noise_rms: float
    """`relative_rms` between two runs of the simulation (see `emit.verify`)."""
    noise_agreement: float
    """Share of images with the same top-1 class in two runs of the simulation."""
    kernels: tuple[Kernel, ...] = ()
    """The kernel that onnxruntime runs for each layer."""
    emulated: bool = False
    """Whether integer kernels that do not saturate were emulated, because those of this processor saturate."""


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`. Accuracies are shares of 1."""

    images: int
    top1: float | None
    """None without labels."""
    top1_interval: tuple[float, float] | None
    """95 % confidence interval of top-1 (Wilson)."""
    top5: float | None
    agreement: float | None
    """Share of images on which the model and the reference predict the same class; None without a reference."""
    reference_top1: float | None
    top1_difference: float | None
    """Top-1 of the model minus that of the reference, on the same images."""
    top1_difference_interval: tuple[float, float] | None
    """95 % confidence interval of `top1_difference`, from the images on which the two differ (Tango)."""
    file_bytes: int
    """Size of the model, including external data."""
    reference_bytes: int | None
    latency_ms: float
    """Median latency of one batch, of the smallest size that the model (and the reference, if any) accepts."""
    reference_latency_ms: float | None
    latency_batch: int
    """Batch size of `latency_ms`."""
    reference_latency_batch: int | None
    """Batch size of the reference. Differs from `latency_batch` if both models have different fixed batch sizes."""


@dataclass(frozen=True)
class Plan:
    """The estimated cost of an analysis."""

    images: int
    """Number of images of the trials: below full effort, those of the first block."""
    most_images: int
    """Number of images if the choice of bits needs all blocks; other figures are those of `images`."""
    trials: int
    """Number of trials."""
    passes: float
    """Work of all trials, in complete passes of the images through the network."""
    workers: int
    """Number of processes that would run the trials."""
    images_a_second: float
    """Images per second through the whole network, including observers, in the probe."""
    ranges_seconds: float
    """Estimated time until all ranges are found, reading the images included."""
    rounding_seconds: float
    """Estimated time to round the weights of the trials."""
    trials_seconds: float
    """Estimated time of the trials on `images`."""
    bytes: float
    """Estimated resident memory of all processes together."""

    @property
    def seconds(self) -> float:
        """Estimated time of the analysis."""
        return self.ranges_seconds + self.rounding_seconds + self.trials_seconds


@dataclass(frozen=True)
class Compressed:
    """A finished allocation: the decision, the written files, and the verification against the simulation."""

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
class Finetuned:
    """A finished fine-tuning; how it went is in `compressed.allocation.training`."""

    compressed: Compressed
    seconds: float
    """Duration of the training, in this process."""


@dataclass(frozen=True)
class DemoRow:
    """One row of the demo's table: a model with its costs and evaluation."""

    name: str
    costs: Costs
    evaluation: Evaluation
