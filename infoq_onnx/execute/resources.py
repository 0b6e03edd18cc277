"""What work may use; its result depends on none of it."""

from __future__ import annotations

from dataclasses import dataclass

from infoq_onnx.execute.cluster import Cluster

_SHARE = 8
"""So many times what may stay in memory of images, and of activations between layers, the memory has to hold."""


@dataclass(frozen=True)
class Resources:
    """Processes, memory, machines."""

    workers: int | None = 1
    """Processes that run trials; 1 runs them in this one, with all its threads; None starts one a processor where the
    work is worth it."""
    memory: int | None = None
    """Bytes that they, and this one, may take, about; None: what they need."""
    cluster: Cluster | None = None
    """Runs trials in their stead."""

    @property
    def share(self) -> int | None:
        """Bytes that one large set of arrays may take of the memory; None: what it needs."""
        return None if self.memory is None else self.memory // _SHARE
