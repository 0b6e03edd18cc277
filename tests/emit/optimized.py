"""What onnxruntime makes of a model when it loads it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort


def optimized(model: onnx.ModelProto, folder: Path, *, integer_kernels: bool = True) -> onnx.ModelProto:
    """Load a model as `open_session` does, and return the graph that is run."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    if not integer_kernels:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def operators(model: onnx.ModelProto, folder: Path, *, integer_kernels: bool = True) -> Counter[str]:
    """How often each operator stands in the graph that is run."""
    return Counter(node.op_type for node in optimized(model, folder, integer_kernels=integer_kernels).graph.node)
