"""The result of `allocate`: bit-widths, bounds and costs."""

from __future__ import annotations

from dataclasses import dataclass, field

from infoq_onnx.schema.bits import Bits
from infoq_onnx.schema.finetune import Training
from infoq_onnx.schema.json_form import OMITTED


@dataclass(frozen=True)
class Bound:
    """An upper limit (for compression, a lower limit) on a cost of an allocation."""

    metric: str
    """A key of `allocation.metrics.METRICS`, or "budget" for a table of costs."""
    limit: float
    text: str
    """The bound as written by the user, e.g. "uniform:3/3"."""
    overhead: float = 0.0
    """Cost that does not depend on the bits. For a size: the bytes of the file that are not weights."""
    table_sha256: str = ""
    """Hash of the file with the costs, for a table; otherwise empty."""


@dataclass(frozen=True)
class Costs:
    """The exact costs of an allocation."""

    bitops: int
    """Σ MACs · b_w · b_a for one image (b_a · b_a' for a MatMul of two activations)."""
    weight_bytes: float
    """Σ parameters · b_w / 8."""
    compression: float
    """32 · Σ parameters / Σ parameters · b_w."""
    avg_weight_bits: float
    """Mean of b_w, weighted by parameters."""
    avg_act_bits: float
    """Mean of b_a, weighted by the elements of each group's tensor."""


@dataclass(frozen=True)
class Allocation:
    """b_w for every layer with weights and b_a for every activation group, with everything needed to reproduce them."""

    schema: int
    model_sha256: str
    analysis_sha256: str
    """Hash of the `analysis.json` that the allocation is based on."""
    scores_sha256: str
    """Hash of the file of scores; empty for uniform bits."""
    criterion: str
    alpha: float
    bounds: tuple[Bound, ...]
    pins: tuple[str, ...]
    weight_bits: dict[str, int]
    activation_bits: dict[str, int]
    rounding: str
    """How weights were rounded: "nearest", or "gptq" (see `simulate.rounding.sequential`)."""
    repair: bool
    """Whether each layer compensated for the errors of the layers before it."""
    costs: Costs
    score: float
    optimal: bool
    """The solver proved that no allocation within the bounds has a lower score. False for uniform bits."""
    target: str = "any"
    """Target processor, a key of `emit.targets.TARGETS`."""
    samples: int = 0
    """Number of images that gptq rounded with; 0 for nearest, which uses none."""
    samples_sha256: str = ""
    """Hash of the contents of these images."""
    training: Training | None = field(default=None, metadata={OMITTED: True})
    """How weights, step sizes and biases were fine-tuned afterwards; None: not at all."""

    @property
    def bits(self) -> Bits:
        """Bits of every unit."""
        return Bits(self.weight_bits, self.activation_bits)
