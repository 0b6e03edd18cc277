"""Convert a model to the normal form that the later stages expect."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from infoq_onnx.errors import ModelError
from infoq_onnx.graph.editing import stamp_ir_version
from infoq_onnx.graph.ort import first_line
from infoq_onnx.graph.passes.canonical_gemm import canonical_gemm
from infoq_onnx.graph.passes.constants_to_initializers import constants_to_initializers
from infoq_onnx.graph.passes.einsum_to_matmul import einsum_to_matmul
from infoq_onnx.graph.passes.fold_batchnorm import fold_batchnorm
from infoq_onnx.graph.passes.fold_constants import fold_constants
from infoq_onnx.graph.passes.fold_shapes import fold_shapes
from infoq_onnx.graph.passes.inline_functions import inline_functions
from infoq_onnx.graph.passes.matmul_to_gemm import matmul_to_gemm
from infoq_onnx.graph.passes.name_batch_axis import name_batch_axis
from infoq_onnx.graph.passes.name_nodes import name_nodes
from infoq_onnx.graph.passes.patches_to_matmul import patches_to_matmul
from infoq_onnx.graph.passes.pointwise_head import pointwise_head
from infoq_onnx.graph.passes.remove_dead import remove_dead
from infoq_onnx.graph.passes.remove_identity import remove_identity
from infoq_onnx.graph.passes.sort_nodes import sort_nodes
from infoq_onnx.graph.passes.strip_initializer_inputs import strip_initializer_inputs
from infoq_onnx.graph.passes.unfuse import unfuse
from infoq_onnx.graph.passes.unshare_initializers import unshare_initializers
from infoq_onnx.graph.passes.upgrade_opset import upgrade_opset

Pass = Callable[[onnx.ModelProto], int]

ENTRY_PASSES: tuple[Pass, ...] = (
    inline_functions,
    upgrade_opset,
    strip_initializer_inputs,
    name_batch_axis,
    unfuse,
)
"""Run once, before all others. The other passes rely on the result."""

SIMPLIFYING_PASSES: tuple[Pass, ...] = (
    remove_dead,
    constants_to_initializers,
    remove_identity,
    fold_constants,
    fold_shapes,
    einsum_to_matmul,
    matmul_to_gemm,
    canonical_gemm,
    fold_batchnorm,
    pointwise_head,
    patches_to_matmul,
    unshare_initializers,
)
"""Repeated until none of them changes the model, because each may enable another."""

FINAL_PASSES: tuple[Pass, ...] = (remove_dead, sort_nodes, name_nodes)
"""Run once, after all others."""


def normalize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an equivalent model in normal form.

    The copy has:

    - operator set 13 or newer and no local functions;
    - no Constant, Identity or Dropout nodes, and no nodes with only constant inputs, wherever these can be removed;
    - BatchNormalization folded into the preceding layer where possible;
    - a single layout of Gemm;
    - weights and biases that each belong to one layer;
    - uniquely named nodes in an order that depends only on the graph.

    The input and the outputs keep their names.

    Parameters
    ----------
    model : ModelProto
        A model returned by `load_model`; it is not changed.

    Returns
    -------
    ModelProto
        The model in normal form, checked by onnx. It computes the same function, up to the rounding of folded weights.

    Raises
    ------
    ModelError
        The operator set cannot be upgraded, a local function cannot be inlined, or the result is not a valid model.
    """
    normal = onnx.ModelProto()
    normal.CopyFrom(model)
    stamp_ir_version(normal)
    _apply(ENTRY_PASSES, normal)
    while _apply(SIMPLIFYING_PASSES, normal):
        pass
    _apply(FINAL_PASSES, normal)
    try:
        onnx.checker.check_model(normal, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"the normalised graph is not valid: {first_line(error)}; please report this with the model"
        ) from error
    # copy, because protobuf does not free replaced constants until the whole message is freed
    kept = onnx.ModelProto()
    kept.CopyFrom(normal)
    return kept


def _apply(passes: tuple[Pass, ...], model: onnx.ModelProto) -> int:
    return sum(run(model) for run in passes)
