"""infoq-onnx: mixed-precision quantization of ONNX classifiers by information flow.

The verbs of the command line as functions; everything heavy is imported when one of them is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infoq_onnx.analyses import find_analysis, read_analysis
    from infoq_onnx.errors import InfoQError
    from infoq_onnx.pipeline import (
        allocate,
        analyze,
        compress,
        criteria,
        evaluate,
        finetune,
        inspect,
        lint,
        plan,
        score,
    )
    from infoq_onnx.schema import (
        Allocation,
        AllocationSettings,
        Analysis,
        FinetuneSettings,
        MeasurementSettings,
        Network,
        Preprocessing,
    )

__all__ = [
    "Allocation",
    "AllocationSettings",
    "Analysis",
    "FinetuneSettings",
    "InfoQError",
    "MeasurementSettings",
    "Network",
    "Preprocessing",
    "allocate",
    "analyze",
    "compress",
    "criteria",
    "evaluate",
    "find_analysis",
    "finetune",
    "inspect",
    "lint",
    "plan",
    "read_analysis",
    "score",
]

_HOMES = {
    "Allocation": "schema",
    "AllocationSettings": "schema",
    "Analysis": "schema",
    "FinetuneSettings": "schema",
    "InfoQError": "errors",
    "MeasurementSettings": "schema",
    "Network": "schema",
    "Preprocessing": "schema",
    "find_analysis": "analyses",
    "read_analysis": "analyses",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'pipeline')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
