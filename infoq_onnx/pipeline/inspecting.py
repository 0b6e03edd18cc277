"""`inspect`: list the quantizable parts of a model."""

from __future__ import annotations

from pathlib import Path

from infoq_onnx.preparation import prepare
from infoq_onnx.reporter import Reporter
from infoq_onnx.schema import Network, typed


@typed
def inspect(model: Path | str, *, logits: str | None = None, reporter: Reporter | None = None) -> Network:
    """List what there is to quantize in a model: layers, groups, parameters, MACs, and what stays in float and why.

    Parameters
    ----------
    model : path of the float ONNX classifier
    logits : the output with the class scores; None: the first output, or the only one that can be
    reporter : receives remarks

    Raises
    ------
    ModelError
        The file cannot be used.
    """
    return prepare(model, logits, reporter).network
