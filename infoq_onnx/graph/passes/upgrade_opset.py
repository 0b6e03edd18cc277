"""Convert models with an operator set below 13 to 13, the first with per-channel DequantizeLinear.

The default domain has two spellings, "" and "ai.onnx". Afterwards the model uses only "", which simplifies the other
passes.
"""

from __future__ import annotations

import onnx

from infoq_onnx.errors import ModelError
from infoq_onnx.graph.editing import is_standard, opset_of, stamp_ir_version, walk
from infoq_onnx.graph.ort import first_line

TARGET_OPSET = 13


def upgrade_opset(model: onnx.ModelProto) -> int:
    """Convert a model with an operator set below `TARGET_OPSET` to `TARGET_OPSET`; leave newer ones unchanged.

    Returns
    -------
    int
        Number of versions that the operator set is raised by, plus the number of domain names changed.

    Raises
    ------
    ModelError
        An operator cannot be converted; the message names it.
    """
    changes = _spell_domain(model)
    version = opset_of(model)
    if version >= TARGET_OPSET:
        return changes
    try:
        converted = onnx.version_converter.convert_version(model, TARGET_OPSET)
    except (onnx.version_converter.ConvertError, RuntimeError) as error:
        raise ModelError(
            f"opset {version} cannot be upgraded to {TARGET_OPSET}: {first_line(error)}; export the model again with "
            f"opset {TARGET_OPSET} or newer"
        ) from error
    stamp_ir_version(converted)
    model.CopyFrom(converted)
    return changes + TARGET_OPSET - version


def _spell_domain(model: onnx.ModelProto) -> int:
    changes = 0
    for entry in (*model.opset_import, *walk(model.graph.node)):
        if entry.domain and is_standard(entry.domain):
            entry.domain = ""
            changes += 1
    return changes
