"""What `allocate` decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from infoq_onnx.schema.bits import Bits, Rounding

DEFAULT_CRITERION = "kl"
"""Whose scores bits are chosen by: it kept more than InfoQ's (docs/benchmarks/default_criterion.md)."""


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
    rounding: Rounding = "gptq"
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


@dataclass(frozen=True)
class Bound:
    """One upper (compression: lower) limit on an allocation."""

    metric: str
    """A key of `allocation.metrics.METRICS`, or "budget" for a table of costs."""
    limit: float
    text: str
    """As the user wrote it, e.g. "uniform:3/3"."""
    overhead: float = 0.0
    """What counts besides, whatever the bits: of a size, the bytes of the file that are not weights."""
    table_sha256: str = ""
    """Of the file that lists the costs, for a table."""


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
    """Of the `analysis.json` that it rests on …"""
    scores_sha256: str
    """… and of the file of scores; empty for uniform bits."""
    criterion: str
    alpha: float
    bounds: tuple[Bound, ...]
    pins: tuple[str, ...]
    weight_bits: dict[str, int]
    activation_bits: dict[str, int]
    rounding: str
    """How weights became codes: "nearest", or "gptq" (see `simulate.rounding.sequential`)."""
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

    @property
    def bits(self) -> Bits:
        """Bits of every unit."""
        return Bits(self.weight_bits, self.activation_bits)
