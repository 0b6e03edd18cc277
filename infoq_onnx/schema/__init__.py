"""The vocabulary: frozen dataclasses that all stages share, and their JSON form.

The package contains data only, no computation. Tensor names are those of the normalised graph. Shapes are for one
image, without a batch axis. Sizes are in elements. MACs are multiply-accumulates for one image.
"""

from __future__ import annotations

from infoq_onnx.schema.allocation import Allocation, Bound, Costs
from infoq_onnx.schema.analysis import (
    AddedSamples,
    Analysis,
    Analyzed,
    CalibrationRef,
    Candidate,
    Delta,
    LocalError,
    ModelRef,
    Observer,
    Preprocessing,
    Score,
    ScoreTable,
    Trial,
)
from infoq_onnx.schema.bits import BASELINE_BITS, BITS, EXACT_BITS, Bits, Change, Kind, Quantizer, Unit
from infoq_onnx.schema.finetune import (
    AUGMENTATIONS,
    FINETUNE_MODES,
    FinetuneMode,
    FinetuneSettings,
    HeldOut,
    Training,
    counted,
)
from infoq_onnx.schema.json_form import UnknownField, from_json, to_json
from infoq_onnx.schema.network import ActivationGroup, Layer, Network, SkippedNode, Split, tensor_of, units_of
from infoq_onnx.schema.results import (
    Compressed,
    CriteriaList,
    CriterionInfo,
    DemoRow,
    Evaluation,
    Finetuned,
    Kernel,
    Lint,
    Plan,
    Verification,
)
from infoq_onnx.schema.settings import (
    DEFAULT_CRITERION,
    EFFORTS,
    OBSERVING,
    AllocationSettings,
    Effort,
    MeasurementSettings,
    Observing,
)
from infoq_onnx.schema.types import require_types, typed
from infoq_onnx.schema.versions import ALLOCATION_VERSION, ANALYSIS_VERSION, SCORES_VERSION, OtherVersion, read

__all__ = [
    "ALLOCATION_VERSION",
    "ANALYSIS_VERSION",
    "AUGMENTATIONS",
    "BASELINE_BITS",
    "BITS",
    "DEFAULT_CRITERION",
    "EFFORTS",
    "EXACT_BITS",
    "FINETUNE_MODES",
    "OBSERVING",
    "SCORES_VERSION",
    "ActivationGroup",
    "AddedSamples",
    "Allocation",
    "AllocationSettings",
    "Analysis",
    "Analyzed",
    "Bits",
    "Bound",
    "CalibrationRef",
    "Candidate",
    "Change",
    "Compressed",
    "Costs",
    "CriteriaList",
    "CriterionInfo",
    "Delta",
    "DemoRow",
    "Effort",
    "Evaluation",
    "FinetuneMode",
    "FinetuneSettings",
    "Finetuned",
    "HeldOut",
    "Kernel",
    "Kind",
    "Layer",
    "Lint",
    "LocalError",
    "MeasurementSettings",
    "ModelRef",
    "Network",
    "Observer",
    "Observing",
    "OtherVersion",
    "Plan",
    "Preprocessing",
    "Quantizer",
    "Score",
    "ScoreTable",
    "SkippedNode",
    "Split",
    "Training",
    "Trial",
    "Unit",
    "UnknownField",
    "Verification",
    "counted",
    "from_json",
    "read",
    "require_types",
    "tensor_of",
    "to_json",
    "typed",
    "units_of",
]
