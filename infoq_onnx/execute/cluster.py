"""Run tasks on a Ray cluster. Machines may join and leave; the tasks of a lost machine are run again on another."""

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

from infoq_onnx.errors import MissingDependencyError, SettingsError, WorkerError, setting
from infoq_onnx.execute.shared import from_parts, parts_of

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

LOCAL = "local"
"""Address that starts a temporary cluster on this machine."""
_ADDRESS = re.compile(r"local|auto|(ray://)?(?P<host>[\w.-]+|\[[\da-fA-F:.]+\]):(?P<port>\d{1,5})")
_PACKAGES = ("infoq-onnx", "onnxruntime", "numpy")
"""Packages whose versions affect the results of a task."""
_ANSWER = 10.0
"""Timeout in seconds for connecting to a cluster."""
_AHEAD = 2
"""Number of tasks per slot that are submitted at a time, so that no slot waits for its next task."""
_LOSSES = 4
"""Number of times a task is lost before the run fails."""
_GLANCE = 0.5
"""Interval in seconds at which the available processors and Ctrl-C are checked."""
_PATIENCE = 300.0
"""Seconds to wait for a cluster without processors to start machines."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to; created by `connected`."""

    threads: int
    """Number of processors, and of threads, per task."""
    at_once: int | None
    """Maximum number of concurrent tasks; None is limited only by the processors."""


@contextlib.contextmanager
def connected(address: str, workers: int | None, processors: int) -> Iterator[Cluster]:
    """Connect to a cluster, or start one on this machine, for the duration of a `with` block.

    If this process is already connected to a cluster, that connection is used and remains open afterwards.

    Parameters
    ----------
    address : "local" starts a cluster on this machine; "auto" connects to the cluster that runs on this machine or that
        RAY_ADDRESS names; "host:port" and "ray://host:port" connect to the cluster at that address
    workers : maximum number of concurrent tasks; None is limited only by the processors
    processors : number of processors of this machine

    Yields
    ------
    Cluster

    Raises
    ------
    MissingDependencyError
        Ray is not installed.
    SettingsError
        `address` is not valid.
    WorkerError
        There is no cluster at this address, it refuses the connection, or the local cluster cannot be started.
    """
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise SettingsError(f"{setting('ray')} {address}: give local, auto, host:port or ray://host:port")
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
                else (
                    "join",
                    f"; check {setting('ray')}, and RAY_AUTH_MODE if it needs a token, or give {setting('ray')} local",
                )
            )
            raise WorkerError(f"cannot {verb} a Ray cluster at {address}: {_one_line(error)}{advice}") from error
        yield cluster
    finally:
        if begun:
            with _held_back():
                ray.shutdown()


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Defer Ctrl-C to the end of the block, because Ray's native code sometimes crashes when it is interrupted."""
    if threading.current_thread() is not threading.main_thread():
        # Ctrl-C interrupts only the main thread
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
    # Ray reads this variable when it is first imported; its messages about lost workers would mix with stdout
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    # no usage statistics
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(f'{setting("ray")} needs Ray: pip install "infoq-onnx[ray]"') from error
    return ray


def _check_answers(address: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), _ANSWER).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WorkerError(
            f"no Ray cluster answers at {address}: {reason}; start one there with {_start(address, port)}, or "
            f"give {setting('ray')} local"
        ) from error


def _start(address: str, port: int) -> str:
    """Return the command that starts a cluster that answers at an address."""
    option = "--ray-client-server-port" if address.startswith("ray:") else "--port"
    return f"ray start --head {option}={port}"


@dataclass(frozen=True)
class _InHand:
    index: int
    machine: str | None
    """The machine that the task was given to; None lets Ray choose."""


class Distributed(Generic[T, R]):
    """Executor that runs tasks on a cluster. Use as a context manager, inside the block of `connected`.

    Parameters
    ----------
    setup : function that is called with `state` once in every worker process and returns the function that runs a task
    state : data shared by all tasks; `setup`, `state`, tasks and results must be picklable
    cluster : the cluster to use
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

        Each task is assigned to a specific machine, so that the tasks of a lost machine are known. Ray sometimes does
        not notice that a task is lost and would wait forever.

        Parameters
        ----------
        tasks : the tasks, picklable

        Yields
        ------
        tuple
            Index and result of each task, in order of completion.

        Raises
        ------
        WorkerError
            A task was lost repeatedly, a machine has other package versions, there are no processors, or the connection
            to the cluster is lost.
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
                            f"give fewer {setting('workers')}"
                        )
                    waiting.append(index)
        except (ConnectionError, self._ray.exceptions.RaySystemError) as error:
            raise WorkerError(
                f"the Ray cluster is gone: {_one_line(error)}; what is finished is kept, run it again to go on"
            ) from error

    def _submit(self, task: T, machine: str | None) -> Any:
        if self._shared is None:
            # stored once for all tasks; each machine fetches it once
            parts = [np.frombuffer(part, np.uint8) for part in parts_of(self._setup_and_state)]
            self._shared = self._ray.put((_versions(), parts))
            # `run` counts and resubmits lost tasks: Ray itself would retry forever if memory is short
            self._function = self._ray.remote(num_cpus=self._cluster.threads, max_retries=0)(_function())
        # pass only bytes and a list: Ray could not unpickle other objects on machines without their packages
        function = self._function
        if machine is not None:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            # soft, because a new machine may not be known everywhere yet
            function = function.options(scheduling_strategy=NodeAffinitySchedulingStrategy(machine, soft=True))
        return function.remote([self._shared], pickle.dumps(task))

    def _result(self, reference: Any) -> tuple[Any, str | None]:
        """Return a task's result, or the reason why the task was lost. Exceptions of the task are raised again."""
        try:
            return self._ray.get(reference), None
        except self._ray.exceptions.RayError as error:
            return None, self._lost(error)

    def _lost(self, error: Exception) -> str:
        """Return why a task was lost, or raise the exception that the task raised."""
        cause = getattr(error, "cause", error)
        if isinstance(cause, ModuleNotFoundError):
            raise WorkerError(
                f"a machine of the Ray cluster lacks {cause.name}; install the same infoq-onnx on all of them"
            ) from error
        if not isinstance(cause, self._ray.exceptions.RayError):
            raise cause from error
        return _one_line(cause)

    def _slots(self) -> dict[str, int]:
        """Return the number of concurrent tasks for which each machine currently has processors."""
        alive = (node for node in self._ray.nodes() if node["Alive"])
        slots = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) // self._cluster.threads for node in alive}
        return {machine: count for machine, count in slots.items() if count > 0}

    def _places(self, slots: Mapping[str, int]) -> list[str | None]:
        """List the machines to submit tasks to now, once per task they have room for, the least busy first.

        If there are no machines, the list is [None], which lets Ray choose: a cluster may start machines for waiting
        tasks.
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
        """Remove and return the tasks whose machine has left the cluster."""
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
        # a nested function is pickled by value, so a missing package is reported by the import below
        from infoq_onnx.execute.cluster import work

        return work(shared[0], task)

    return run_task


_made: tuple[Any, Callable[[Any], Any]] | None = None
"""The shared object and the function made from it that runs a task in this worker process."""


def work(shared: Any, task: bytes) -> Any:
    """Run a task in a worker process. The first call in a process also runs `setup`.

    Parameters
    ----------
    shared : reference to the package versions and to the pickled `setup` and `state`
    task : the pickled task

    Returns
    -------
    object
        The result of the task.

    Raises
    ------
    WorkerError
        This machine has other package versions than the machine that started the run.
    """
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
