"""Checkpoints of a training: one safetensors file, whose header holds everything else as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from infoq_onnx.errors import OutputError, setting
from infoq_onnx.files import write_bytes

_KEY = "infoq_onnx.training"
_REMEDY = f"remove it to begin anew, or give another {setting('output')}"


class Checkpoint(NamedTuple):
    """The state of a training after some steps."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]
    """Everything that is not a tensor, in JSON's types."""


def save(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a checkpoint in place of an earlier one; it is on disk when the function returns.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    from safetensors.torch import save as packed

    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, packed(kept, {_KEY: json.dumps(state, sort_keys=True)}))


def load(path: Path, fingerprint: str) -> Checkpoint | None:
    """Read a checkpoint.

    Parameters
    ----------
    path : the file
    fingerprint : what identifies the training, `state["fingerprint"]`

    Returns
    -------
    Checkpoint or None
        None: there is none.

    Raises
    ------
    OutputError
        The checkpoint is damaged, or belongs to another training.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as held:
            state = json.loads((held.metadata() or {})[_KEY])
            tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 - no mapping
            other = state["fingerprint"] != fingerprint
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise damaged(path) from error
    if other:
        raise OutputError(f"the checkpoint {path} is of a training with other settings, model or images; {_REMEDY}")
    return Checkpoint(tensors, state)


def damaged(path: Path) -> OutputError:
    """Return the error for a checkpoint that cannot be used."""
    return OutputError(f"the checkpoint {path} is damaged; {_REMEDY}")
