"""The verbs: inspect, plan, analyze, allocate, compress, evaluate, lint, demo. Each reads like the README."""

from __future__ import annotations

from infoq_onnx.pipeline.allocating import allocate
from infoq_onnx.pipeline.analyzing import analyze
from infoq_onnx.pipeline.compressing import compress
from infoq_onnx.pipeline.demonstrating import demo
from infoq_onnx.pipeline.evaluating import evaluate
from infoq_onnx.pipeline.inspecting import inspect
from infoq_onnx.pipeline.linting import lint
from infoq_onnx.pipeline.planning import plan

__all__ = ["allocate", "analyze", "compress", "demo", "evaluate", "inspect", "lint", "plan"]
