"""What `allocate` decides."""

from __future__ import annotations

from dataclasses import dataclass

from infoq_onnx.schema.bits import Bits


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
