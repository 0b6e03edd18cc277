"""The work of trials in multiply-accumulates, a better measure of progress than the number of trials."""

from __future__ import annotations

from collections.abc import Sequence

from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.session import processors
from infoq_onnx.schema import Network, tensor_of
from infoq_onnx.sensitivity.trials import Task
from infoq_onnx.simulate.running.prefix import Prefix

_OVERHEAD = 0.05
"""Fixed cost of a trial, mainly the estimates, as a share of the network's multiply-accumulates."""

WORTH_PROCESSES = 3e11
"""Multiply-accumulates, about ten seconds of work, above which starting processes pays off."""


def workers_for(work: float) -> int:
    """Return the number of processes for a given number of multiply-accumulates: one per processor, or 1."""
    return processors() if work > WORTH_PROCESSES else 1


def work_of(
    graph: Graph, network: Network, prefix: Prefix, tasks: Sequence[Task], *, estimates: bool = True
) -> list[float]:
    """Return the multiply-accumulates per image of each task.

    A task runs the network downstream of its unit once per bit-width, and the part between the carried activations and
    the unit once. The cost of carrying activations from unit to unit belongs to no task and is not included.

    Parameters
    ----------
    graph, network : the network
    prefix : the activations carried along upstream of the units
    tasks : the tasks
    estimates : include the cost of the estimates

    Returns
    -------
    list of float
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
