"""Several processes that train together, as `torchrun` starts them; one process without it."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from infoq_onnx.errors import SettingsError, setting


def device(name: str) -> torch.device:
    """Return the device that this process trains on, and join the other processes if `torchrun` started any.

    Parameters
    ----------
    name : "auto": a GPU if there is one; "cpu"; or any name that torch knows

    Raises
    ------
    SettingsError
        There is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
        if found.type == "cuda" and ":" not in name:
            found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"{setting('device')} {name}: torch cannot use it ({reason}); give cpu") from error
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if found.type == "cuda" else "gloo")
    return found


def _world() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes files."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def any_of(flag: bool, where: torch.device) -> bool:
    """Whether any process says so: all have to end their training together."""
    if _world() == 1:
        return flag
    told = torch.tensor(float(flag), device=where)
    distributed.all_reduce(told, distributed.ReduceOp.MAX)
    return bool(told.item())


def share_of(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the images of a batch that this process takes: as many as all others take."""
    world = _world()
    if world == 1:
        return positions
    count = max(1, len(positions) // world)
    return positions[distributed.get_rank() * count :][:count]


def wrapped(network: torch.nn.Module, where: torch.device) -> torch.nn.Module:
    """Return the network so that all processes average their gradients."""
    if _world() == 1:
        return network
    return DistributedDataParallel(network, device_ids=[where.index] if where.type == "cuda" else None)
