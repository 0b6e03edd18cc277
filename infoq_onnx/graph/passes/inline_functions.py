"""Replace calls of local functions by the function bodies: f(x) = g(h(x)) becomes the nodes h and g."""

from __future__ import annotations

import onnx
import onnx.inliner

from infoq_onnx.errors import ModelError
from infoq_onnx.graph.ort import first_line

_ADVICE = "export the model without local functions"


def inline_functions(model: onnx.ModelProto) -> int:
    """Inline all local functions and remove their definitions.

    Returns
    -------
    int
        Number of function definitions removed.

    Raises
    ------
    ModelError
        A function uses an operator set that cannot be converted to the model's operator set.
    """
    count = len(model.functions)
    if count == 0:
        return 0
    inlined = onnx.inliner.inline_local_functions(model)
    if inlined.functions:
        inlined = _convert_and_inline(inlined)
    model.CopyFrom(inlined)
    return count


def _convert_and_inline(model: onnx.ModelProto) -> onnx.ModelProto:
    """Inline functions written for another version of the operator set.

    The version conversion needs the types of all tensors.
    """
    name = model.functions[0].name
    try:
        inlined = onnx.inliner.inline_local_functions(onnx.shape_inference.infer_shapes(model), convert_version=True)
    except RuntimeError as error:
        raise ModelError(f"local function {name!r} cannot be inlined: {first_line(error)}; {_ADVICE}") from error
    if inlined.functions:
        raise ModelError(f"local function {name!r} cannot be inlined: it uses another operator set; {_ADVICE}")
    return inlined
