"""The vocabulary: frozen dataclasses that every stage shares, and their JSON form.

Nothing here computes. Tensors are named as in the normalised graph; shapes are those of one image (no batch axis);
sizes are in elements, MACs are multiply-accumulates for one image.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

SCHEMA_VERSION = 2

BITS: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
"""The bit-widths the method knows. 8 is the baseline."""

BASELINE_BITS = 8

EXACT_BITS = 7
"""The most bits of a weight whose products always fit 16 bits in pairs (see `quantize.saturation`)."""

DEFAULT_CRITERION = "kl"
"""Whose scores bits are chosen by: it kept more than InfoQ's (docs/benchmarks/default_criterion.md)."""

Kind = Literal["weight", "activation"]

Rounding = Literal["nearest", "gptq"]


# -------------------------------------------------------------------------------------------------------------- network


@dataclass(frozen=True)
class Layer:
    """A quantizable node: Conv, ConvTranspose, Gemm, MatMul with a constant side, or MatMul of two activations."""

    name: str
    op_type: str
    groups: tuple[str, ...]
    """The activation groups (tensor names) that feed it: one, or two for a MatMul of two activations."""
    weight: str | None
    """Its weight initializer; None for a MatMul of two activations."""
    weight_shape: tuple[int, ...]
    channel_axis: int | None
    """Axis of the weight that counts output channels: one scale for each index along it."""
    bias: str | None
    output: str
    """The tensor the node writes."""
    observed: str
    """Where the layer's effect is observed: its output after the activation function (and residual Add) behind it."""
    output_shape: tuple[int, ...]
    parameters: int
    """Weight elements; biases are not counted (they stay in float or int32)."""
    macs: int


@dataclass(frozen=True)
class ActivationGroup:
    """The layers fed by one tensor. They share one activation quantizer, hence one bit-width."""

    name: str
    """The tensor."""
    layers: tuple[str, ...]
    shape: tuple[int, ...]
    elements: int


@dataclass(frozen=True)
class SkippedNode:
    """A node that has weights or multiplies, and that is left in float, with the reason."""

    name: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class Network:
    """What there is to quantize in a normalised graph, in topological order."""

    input: str
    input_shape: tuple[int, ...]
    output: str
    classes: int
    batch: int | None
    """The batch size the graph is fixed to; None when it is free."""
    opset: int
    layers: tuple[Layer, ...]
    groups: tuple[ActivationGroup, ...]
    skipped: tuple[SkippedNode, ...]
    repeated: int = 0
    """Weight elements that the model as it was given does not have: those of channels read in parts (`Split`)."""


@dataclass(frozen=True)
class Split:
    """A channel that dwarfs the others of its tensor, and is read in parts (see `simulate.split`)."""

    tensor: str
    channel: int
    parts: int


# --------------------------------------------------------------------------------------------------------- quantization


@dataclass(frozen=True)
class Quantizer:
    """An asymmetric unsigned per-tensor grid: codes 0 … 2^bits − 1, value = scale · (code − zero_point)."""

    bits: int
    scale: float
    """Exactly representable in float32: the emitted graph stores it so."""
    zero_point: int


# ------------------------------------------------------------------------------------------------------------- analysis


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
    """The baseline with one layer's weights, or one group's activations, at `bits` bits."""

    unit: str
    """Layer name (weights) or group name (activations)."""
    kind: Kind
    bits: int
    top1_drop: float
    """Share of images classified right by the baseline minus that of the trial."""
    kl: float
    """Mean over images of KL(softmax of the baseline's logits ‖ softmax of the trial's), in nats."""
    deltas: dict[str, Delta]
    """By observed tensor; only observers that the unit can reach."""


@dataclass(frozen=True)
class Observer:
    """A tensor at which trials are compared with the baseline, with its standing as a measure of harm."""

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

    unit: str
    kind: Kind
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
class SweepSettings:
    """What decides the numbers of an analysis, besides the model and the images."""

    samples: int
    seed: int
    projections: int
    neighbours: int
    bits: tuple[int, ...]
    encoder: str
    """"pca", "self", "dinov2", or the path of an ONNX file."""
    threshold: float
    """Correlation above which an observer is kept (the paper's 0.70)."""
    one_over_b: bool
    """The 1/b factor of Eq. 4."""
    debias: bool
    """Use max(0, |Δ| − σ) for |Δ|."""
    equalize: bool
    """First give the channels of a tensor ranges more alike, by factors and by splitting."""
    trial_rounding: Rounding
    """How the weights of a trial are rounded."""
    weight_only: bool = False
    """Only weights were tried; activations have no scores."""
    provider: str = "cpu"
    """What onnxruntime ran the networks on."""


@dataclass(frozen=True)
class Analysis:
    """Everything `analyze` found out. `allocate` needs besides it the model, ranges.npz, and images for its check."""

    schema: int
    versions: dict[str, str]
    model: ModelRef
    calibration: CalibrationRef
    settings: SweepSettings
    network: Network
    observers: tuple[Observer, ...]
    trials: tuple[Trial, ...]
    scores: dict[str, tuple[Score, ...]]
    """By criterion."""
    splits: tuple[Split, ...] = ()
    """What `network` has that the normalised model has not."""


# ----------------------------------------------------------------------------------------------------------- allocation


@dataclass(frozen=True)
class Bound:
    """One upper (compression: lower) limit on an allocation."""

    metric: Literal["bitops", "size", "compression", "avg_weight_bits", "avg_act_bits"]
    limit: float
    text: str
    """As the user wrote it, e.g. "uniform:3/3"."""
    overhead: float = 0.0
    """What counts besides, whatever the bits: of a size, the bytes of the file that are not weights."""


@dataclass(frozen=True)
class Costs:
    """What an allocation costs, counted exactly."""

    bitops: int
    """Σ MACs · b_w · b_a for one image (b_a · b_a' for a MatMul of two activations)."""
    weight_bytes: float
    """Σ parameters · b_w / 8."""
    compression: float
    """32 · Σ parameters / Σ parameters · b_w."""
    avg_weight_bits: float
    """Mean of b_w weighted by parameters."""
    avg_act_bits: float
    """Mean of b_a weighted by the elements of each group's tensor."""


@dataclass(frozen=True)
class Allocation:
    """b_w for every layer with weights and b_a for every group: the lock file of a compression."""

    schema: int
    model_sha256: str
    analysis_sha256: str
    criterion: str
    alpha: float
    bounds: tuple[Bound, ...]
    pins: tuple[str, ...]
    weight_bits: dict[str, int]
    activation_bits: dict[str, int]
    rounding: str
    """How weights became codes: "nearest", or "gptq" (see `simulate.reconstruct`)."""
    repair: bool
    """Whether each layer made up for the errors of the layers before it."""
    costs: Costs
    score: float
    optimal: bool
    """The solver proved that no allocation scores lower within the bounds; False for a uniform one."""
    target: str = "any"
    """The processor it is meant for, a key of `emit.targets.TARGETS`."""
    samples: int = 0
    """Images that gptq rounded with …"""
    samples_sha256: str = ""
    """… and the hash of their contents; nearest looks at none."""


# -------------------------------------------------------------------------------------------------------------- results


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


# ----------------------------------------------------------------------------------------------------------------- JSON

T = TypeVar("T")


def to_json(value: Any, *, compact: bool = False) -> str:
    """Serialise a dataclass as JSON with sorted keys: the same value, the same bytes.

    Parameters
    ----------
    value : an instance of a dataclass
    compact : no white space, instead of one-space indent and a final newline
    """
    if compact:
        return json.dumps(dataclasses.asdict(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return json.dumps(dataclasses.asdict(value), sort_keys=True, indent=1, allow_nan=False) + "\n"


def schema_of(text: str) -> int | None:
    """Version of the schema that a JSON text is of; None where it does not say.

    Raises
    ------
    ValueError
        Not JSON.
    """
    value = json.loads(text)
    schema = value.get("schema") if isinstance(value, dict) else None
    return schema if isinstance(schema, int) else None


def from_json(cls: type[T], text: str) -> T:
    """Rebuild a dataclass from `to_json`'s text.

    Raises
    ------
    ValueError
        Not JSON, or not of this class: the message names the field.
    """
    return typing.cast(T, _build(cls, json.loads(text), cls.__name__))


def _build(kind: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object, found {type(value).__name__}")
        hints = typing.get_type_hints(kind)
        names = {f.name for f in dataclasses.fields(kind)}
        if unknown := sorted(set(value) - names):
            raise ValueError(f"{where}: unknown field {unknown[0]!r}")
        needed = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING}
        if missing := sorted(needed - set(value)):
            raise ValueError(f"{where}: field {missing[0]!r} is missing")
        return kind(**{name: _build(hints[name], value[name], f"{where}.{name}") for name in sorted(value)})
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _build(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where}: expected a list, found {type(value).__name__}")
        return tuple(_build(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object, found {type(value).__name__}")
        return {key: _build(args[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{where}: expected one of {', '.join(map(str, args))}, found {value!r}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(f"{where}: the number is too large") from error
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where}: expected {kind.__name__}, found {type(value).__name__}")
    return value
