"""How much work trials are, in multiply-accumulates: what is left of it tells more than how many trials are."""

from __future__ import annotations

from collections.abc import Sequence

from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.session import processors
from infoq_onnx.schema import Network, tensor_of
from infoq_onnx.sensitivity.trials import Task
from infoq_onnx.simulate.running.prefix import Prefix

_OVERHEAD = 0.05
"""What a trial costs whatever its unit, as a share of the network's multiply-accumulates: its estimates, above all."""

WORTH_PROCESSES = 3e11
"""Multiply-accumulates, some ten seconds, from which on it pays to start processes."""


def workers_for(work: float) -> int:
    """How many processes to start for so many multiply-accumulates: one a processor, or none besides this one."""
    return processors() if work > WORTH_PROCESSES else 1


def work_of(
    graph: Graph, network: Network, prefix: Prefix, tasks: Sequence[Task], *, estimates: bool = True
) -> list[float]:
    """Multiply-accumulates an image of each task.

    They are those behind the unit, once for each of its bit-widths, and those from what is carried along in front of
    the units up to it. Carrying that is no task's own. With `estimates` something is added for these.
    """
    overhead = _OVERHEAD if estimates else 0.0
    total = sum(layer.macs for layer in network.layers)
    work = []
    for task in tasks:
        tensor = tensor_of(network, task.unit)
        reached = graph.descendants([tensor])
        behind = sum(layer.macs for layer in network.layers if layer.output in reached)
        work.append(prefix.macs_to(tensor) + len(task.bits) * (behind + overhead * total))
    return work
