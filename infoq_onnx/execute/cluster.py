"""Tasks on the machines of a Ray cluster, which may come and go: what a lost one had in hand is done by another."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import pickle
import re
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, Generic, TypeVar

import numpy as np

from infoq_onnx.errors import MissingDependencyError, SettingsError, WorkerError
from infoq_onnx.execute.shared import from_parts, parts_of

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

LOCAL = "local"
"""Address that stands for a cluster of this machine alone, started for the purpose."""
_ADDRESS = re.compile(r"local|auto|(ray://)?(?P<host>[\w.-]+|\[[\da-fA-F:.]+\]):(?P<port>\d{1,5})")
_PACKAGES = ("infoq-onnx", "onnxruntime", "numpy")
"""Packages whose versions decide what a task computes."""
_ANSWER = 10.0
"""Seconds within which a cluster has to answer."""
_AHEAD = 2
"""So many tasks a slot are in hand at a time, so that none waits for the next."""
_LOSSES = 4
"""So many times a single task may be lost."""
_GLANCE = 0.5
"""Seconds between two looks at whether there are processors, and at Ctrl-C."""
_PATIENCE = 300.0
"""Seconds in which a cluster may start its machines."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to. Use `connected`."""

    threads: int
    """Processors, and as many threads, of each task."""
    at_once: int | None
    """Tasks at a time; None for as many as there are processors."""


@contextlib.contextmanager
def connected(address: str, workers: int | None, processors: int) -> Iterator[Cluster]:
    """Connect to a cluster, or start one on this machine, which then ends with this.

    A process that is connected already stays so.

    Parameters
    ----------
    address : "local" starts a cluster; "auto" is the one that runs on this machine or that RAY_ADDRESS names;
        "host:port" and "ray://host:port" are those there
    workers : tasks at a time; None for as many as there are processors
    processors : that this machine has

    Raises
    ------
    MissingDependencyError
        Ray is not installed.
    SettingsError
        The address is none.
    WorkerError
        No cluster is there, or it does not take this process.
    """
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise SettingsError(f"`ray` {address}: give local, auto, host:port or ray://host:port")
    ray = _import_ray()
    if ray.is_initialized():
        yield Cluster(1, workers)
        return
    if parts["host"] is not None:
        # Ray itself would try for minutes
        _check_answers(address, parts["host"].strip("[]"), int(parts["port"]))
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    cluster = Cluster(1, workers)
    if address == LOCAL:
        count = workers or processors
        cluster = Cluster(max(1, processors // count), None)
        options |= {"num_cpus": count * cluster.threads, "num_gpus": 0, "include_dashboard": False}
    begun = False
    try:
        try:
            with _held_back():
                ray.init(address, **options)
                begun = True
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            verb, advice = (
                ("start", "")
                if address == LOCAL
                else ("join", "; check `ray`, and RAY_AUTH_MODE where it wants a token, or give `ray` local")
            )
            raise WorkerError(f"cannot {verb} a Ray cluster at {address}: {_one_line(error)}{advice}") from error
        yield cluster
    finally:
        if begun:
            with _held_back():
                ray.shutdown()


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Let Ctrl-C wait until the block is through: Ray's native code crashes now and then when it is interrupted."""
    if threading.current_thread() is not threading.main_thread():
        # Python interrupts no other
        yield
        return
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if seen:
        signal.raise_signal(signal.SIGINT)


def _import_ray() -> ModuleType:
    # read when Ray is imported first; what it says of lost workers would be mixed with the results on stdout
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    # nothing is reported to anybody
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError('`ray` needs Ray: pip install "infoq-onnx[ray]"') from error
    return ray


def _check_answers(address: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), _ANSWER).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WorkerError(
            f"no Ray cluster answers at {address}: {reason}; start one there with ray start --head, or give `ray` local"
        ) from error


@dataclass(frozen=True)
class _InHand:
    index: int
    machine: str | None
    """None: whichever takes it."""


class Distributed(Generic[T, R]):
    """See `infoq_onnx.execute.Executor`. To be used as a context manager, while there is a connection.

    Parameters
    ----------
    setup : called once in every process, makes the function that runs a task there; picklable, as are all the others
    state : what it makes it of: all that the tasks need to know
    cluster : where
    """

    def __init__(self, setup: Callable[[S], Callable[[T], R]], state: S, cluster: Cluster) -> None:
        self._ray = _import_ray()
        self._setup_and_state = (setup, state)
        self._cluster = cluster
        self._shared: Any = None
        self._function: Any = None
        self._running: dict[Any, _InHand] = {}

    def __enter__(self) -> Distributed[T, R]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _held_back():
            for reference in self._running:
                self._cancel(reference)
            self._running = {}
            self._shared = None

    def run(self, tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
        """Run the tasks, as many at a time as the cluster has processors for.

        Each is given to one machine, so that it is known which are lost with a machine. Ray itself now and then misses
        that one is, and would wait for ever.

        Raises
        ------
        WorkerError
            A task was lost again and again, a machine has other versions of what tasks need, there are no processors,
            or the cluster is gone.
        """
        waiting, lost = deque(range(len(tasks))), Counter[int]()
        idle = time.monotonic()
        try:
            while waiting or self._running:
                with _held_back():
                    slots = self._slots()
                    for machine in self._places(slots)[: len(waiting)]:
                        index = waiting.popleft()
                        self._running[self._submit(tasks[index], machine)] = _InHand(index, machine)
                    done, _ = self._ray.wait(list(self._running), timeout=_GLANCE)
                    results = [(self._running.pop(reference).index, self._result(reference)) for reference in done]
                    results += [(task.index, (None, "its machine is gone")) for task in self._drop_lost(slots)]
                    if done or slots:
                        idle = time.monotonic()
                if time.monotonic() - idle >= _PATIENCE:
                    raise WorkerError("no machine of the Ray cluster has a processor to give; add some with ray start")
                for index, (result, reason) in results:
                    if reason is None:
                        yield index, result
                        continue
                    lost[index] += 1
                    if lost[index] == _LOSSES:
                        raise WorkerError(
                            f"the Ray cluster lost a task {_LOSSES} times, perhaps for want of memory ({reason}); "
                            "give fewer `workers`"
                        )
                    waiting.append(index)
        except (ConnectionError, self._ray.exceptions.RaySystemError) as error:
            raise WorkerError(
                f"the Ray cluster is gone: {_one_line(error)}; what is finished is kept, run it again to go on"
            ) from error

    def _submit(self, task: T, machine: str | None) -> Any:
        if self._shared is None:
            # once for all tasks, and each machine fetches it once
            parts = [np.frombuffer(part, np.uint8) for part in parts_of(self._setup_and_state)]
            self._shared = self._ray.put((_versions(), parts))
            # What is lost is counted here: Ray itself would try for ever where memory is short.
            self._function = self._ray.remote(num_cpus=self._cluster.threads, max_retries=0)(_function())
        # Ray itself hands over bytes and a list: it could not make other objects where their packages are missing
        function = self._function
        if machine is not None:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            # soft: one that has just come may not be known everywhere yet
            function = function.options(scheduling_strategy=NodeAffinitySchedulingStrategy(machine, soft=True))
        return function.remote([self._shared], pickle.dumps(task))

    def _result(self, reference: Any) -> tuple[Any, str | None]:
        """Return what a task has returned, or why it was lost; raise what it has itself raised."""
        try:
            return self._ray.get(reference), None
        except self._ray.exceptions.RayError as error:
            return None, self._lost(error)

    def _lost(self, error: Exception) -> str:
        """Say why a task was lost; raise what it has itself raised."""
        cause = getattr(error, "cause", error)
        if isinstance(cause, ModuleNotFoundError):
            raise WorkerError(
                f"a machine of the Ray cluster lacks {cause.name}; install the same infoq-onnx on all of them"
            ) from error
        if not isinstance(cause, self._ray.exceptions.RayError):
            raise cause from error
        return _one_line(cause)

    def _slots(self) -> dict[str, int]:
        """How many tasks each machine has processors for; they may be others than before."""
        alive = (node for node in self._ray.nodes() if node["Alive"])
        slots = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) // self._cluster.threads for node in alive}
        return {machine: count for machine, count in slots.items() if count > 0}

    def _places(self, slots: Mapping[str, int]) -> list[str | None]:
        """List the machines that may be given a task now, each as often as it has room, the least busy first.

        None is whichever takes it: where there is no machine, a cluster may start one because a task waits.
        """
        in_hand = Counter(task.machine for task in self._running.values())
        levels = [
            (place / count, machine)
            for machine, count in slots.items()
            for place in range(in_hand[machine], _AHEAD * count)
        ]
        places: list[str | None] = [machine for _, machine in sorted(levels)]
        if not slots and not self._running:
            places = [None]
        return places if self._cluster.at_once is None else places[: max(0, self._cluster.at_once - len(self._running))]

    def _drop_lost(self, slots: Mapping[str, int]) -> list[_InHand]:
        """Forget tasks whose machine is gone, and return them."""
        lost = {ref: task for ref, task in self._running.items() if task.machine not in {None, *slots}}
        for reference in lost:
            del self._running[reference]
            self._cancel(reference)
        return list(lost.values())

    def _cancel(self, reference: Any) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError, ConnectionError):
            self._ray.cancel(reference, force=True)


def _one_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".:")


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


# ---------------------------------------------------------------------------------------------------------- in a worker


def _function() -> Callable[[list[Any], bytes], Any]:
    def run_task(shared: list[Any], task: bytes) -> Any:
        # a function in a function travels whole, and fails in here where the package is missing
        from infoq_onnx.execute.cluster import work

        return work(shared[0], task)

    return run_task


_made: tuple[Any, Callable[[Any], Any]] | None = None
"""What runs a task in this process, with the object that it was made of."""


def work(shared: Any, task: bytes) -> Any:
    """Run a task; at a process's first, make what runs it."""
    global _made
    if _made is None or _made[0] != shared:
        versions, parts = _import_ray().get(shared)
        for name, here in _versions().items():
            if here != versions[name]:
                raise WorkerError(
                    f"{socket.gethostname()} has {name} {here}, not {versions[name]} as where this was started; "
                    "results could differ: install the same versions on all machines of the Ray cluster"
                )
        _made = None
        setup, state = from_parts(parts)
        _made = (shared, setup(state))
    return _made[1](pickle.loads(task))
