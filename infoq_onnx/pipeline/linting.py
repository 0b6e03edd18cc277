"""`lint`: report which layers of a quantized model run as integer kernels, and why the others do not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnxruntime

from infoq_onnx.emit.kernels import find_kernels
from infoq_onnx.emit.targets import TARGETS, require_target
from infoq_onnx.errors import ModelError
from infoq_onnx.graph.load import QONNX, QONNX_DOMAIN, read_any
from infoq_onnx.graph.ort import ORT_ERRORS, first_line
from infoq_onnx.schema import Lint, typed


@typed
def lint(model: Path | str, target: str = "any") -> Lint:
    """Report which kernel onnxruntime runs for each layer of a quantized model, from any quantization tool.

    Parameters
    ----------
    model : path of an ONNX file
    target : target processor, a key of `emit.targets.TARGETS`; on targets without saturation, no kernel is reported as
        saturating

    Returns
    -------
    Lint

    Raises
    ------
    SettingsError
        The target does not exist.
    ModelError
        The file does not exist, or onnxruntime cannot load it.
    """
    require_target(target)
    path = Path(model)
    loaded = read_any(path)
    if any(node.domain == QONNX_DOMAIN for node in loaded.graph.node):
        raise ModelError(f"{path} {QONNX}")
    try:
        kernels = find_kernels(loaded)
    except ORT_ERRORS as error:
        raise ModelError(f"{path}: onnxruntime cannot load it ({first_line(error)})") from error
    if not TARGETS[target]:
        kernels = tuple(dataclasses.replace(kernel, saturates=False) for kernel in kernels)
    return Lint(onnxruntime.__version__, kernels)
