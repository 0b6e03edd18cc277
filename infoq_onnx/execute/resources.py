"""Processes, memory and machines that computations may use. Results do not depend on them."""

from __future__ import annotations

from dataclasses import dataclass

from infoq_onnx.errors import SettingsError, setting
from infoq_onnx.execute.cluster import Cluster

_SHARE = 8
"""Memory limit divided by the limit of one large set of arrays, such as images or activations between layers."""


@dataclass(frozen=True)
class Resources:
    """Processes, memory and machines to use."""

    workers: int | None = 1
    """Number of processes that run trials. 1 runs them in this process, with all its threads. None starts one process
    per processor if the work is large enough."""
    memory: int | None = None
    """Approximate limit in bytes for all processes, including this one; None is unlimited."""
    cluster: Cluster | None = None
    """Cluster that runs the trials instead of local processes; None uses local processes."""

    def __post_init__(self) -> None:
        """Refuse a number of processes that makes no sense."""
        if self.workers is not None and self.workers < 1:
            raise SettingsError(f"{setting('workers')} {self.workers}: give 1 or more")

    @property
    def share(self) -> int | None:
        """Limit in bytes for one large set of arrays; None is unlimited."""
        return None if self.memory is None else self.memory // _SHARE
