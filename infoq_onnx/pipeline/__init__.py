"""The verbs of the tool, one module each. All except `demo` are also in the public API."""

from __future__ import annotations

from infoq_onnx.pipeline.allocating import allocate
from infoq_onnx.pipeline.analyzing import analyze
from infoq_onnx.pipeline.demonstrating import demo
from infoq_onnx.pipeline.evaluating import evaluate
from infoq_onnx.pipeline.finetuning import finetune
from infoq_onnx.pipeline.in_one_call import compress
from infoq_onnx.pipeline.inspecting import inspect
from infoq_onnx.pipeline.linting import lint
from infoq_onnx.pipeline.planning import plan
from infoq_onnx.pipeline.scoring import criteria, score

__all__ = [
    "allocate",
    "analyze",
    "compress",
    "criteria",
    "demo",
    "evaluate",
    "finetune",
    "inspect",
    "lint",
    "plan",
    "score",
]
