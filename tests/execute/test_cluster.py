"""Tasks on a Ray cluster: what they see, what comes back, and what happens where they are lost or cannot be had."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from infoq_onnx.errors import DataError, MissingDependencyError, SettingsError, WorkerError
from infoq_onnx.execute import cluster
from infoq_onnx.execute.cluster import Cluster, Distributed, connected
from infoq_onnx.execute.serial import Serial
from tests.execute.workers import State, dies, dies_once, fails, lacks, sums
from tests.prepared import is_one_line

ROOT = Path(__file__).resolve().parents[2]
LARGE, SMALL = 200_000, 100


@pytest.fixture(scope="module")
def local() -> Iterator[Cluster]:
    """A cluster of two processors on this machine, whose workers find the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        with connected("local", 2, 2) as found:
            yield found


def state_of(tmp_path: Path, size: int = SMALL) -> State:
    return State(np.arange(size, dtype=np.float64), tmp_path)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_results_are_those_of_one_process(size: int, tmp_path: Path, local: Cluster) -> None:
    state = state_of(tmp_path, size)
    alone = {index: result[0] for index, result in Serial(sums(state)).run(range(10, 30))}
    with Distributed(sums, state, local) as distributed:
        found = dict(distributed.run(range(10, 30)))
        again = dict(distributed.run([5]))
        assert list(distributed.run([])) == []
    assert {index: value for index, (value, _, _) in found.items()} == alone
    assert again[0][0] == state.values.sum() + 5
    assert os.getpid() not in {pid for _, pid, _ in found.values()}
    # a large array lies in the object store once, and is not copied into each process
    assert {writeable for _, _, writeable in found.values()} == {size == SMALL}


def test_the_state_is_sent_once_and_made_use_of_again(
    tmp_path: Path, local: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[object] = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda value: sent.append(value) or put(value))
    with Distributed(sums, state_of(tmp_path), local) as distributed:
        pids = [pid for tasks in (range(8), range(8)) for _, (_, pid, _) in distributed.run(tasks)]
    assert len(sent) == 1
    assert len(pids) == 16
    # a process of another state makes its own
    with Distributed(sums, State(np.ones(3), tmp_path), local) as distributed:
        assert dict(distributed.run([1]))[0][0] == 4


def test_no_more_tasks_at_a_time_than_asked_for(
    tmp_path: Path, local: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one, most in ((Cluster(1, 1), 1), (local, 4)):
        waited: list[int] = []
        wait = ray.wait

        def counted(references: list[Any], waited: list[int] = waited, wait: Any = wait, **options: Any) -> Any:
            waited.append(len(references))
            return wait(references, **options)

        with monkeypatch.context() as patch:
            patch.setattr(ray, "wait", counted)
            with Distributed(sums, state_of(tmp_path), one) as distributed:
                assert len(list(distributed.run(range(12)))) == 12
        assert max(waited) == most


def test_what_a_dead_process_had_in_hand_is_done_by_another(tmp_path: Path, local: Cluster) -> None:
    with Distributed(dies_once, state_of(tmp_path), local) as distributed:
        found = list(distributed.run(range(8)))
    assert sorted(found) == [(task, -task) for task in range(8)]
    assert (tmp_path / "died").exists()


def test_what_a_lost_machine_had_in_hand_is_done_by_another(
    tmp_path: Path, local: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where Ray never says that it is lost."""
    monkeypatch.setattr(cluster, "_GLANCE", 0.05)
    slots, calls = Distributed._slots, itertools.count()
    submitted: list[int] = []
    submit = Distributed._submit

    def noted(executor: Distributed[Any, Any], task: int, machine: str | None) -> Any:
        submitted.append(task)
        return submit(executor, task, machine)

    monkeypatch.setattr(Distributed, "_submit", noted)
    # for a moment there is another machine than the one that has them
    monkeypatch.setattr(Distributed, "_slots", lambda self: {"0" * 56: 2} if next(calls) == 1 else slots(self))
    monkeypatch.setattr(Distributed, "_cancel", lambda *_: None)
    with Distributed(sums, state_of(tmp_path), local) as distributed:
        found = dict(distributed.run(range(6)))
    assert sorted(found) == list(range(6))
    assert len(submitted) > 6


def test_a_task_that_always_kills_its_process_is_given_up(tmp_path: Path, local: Cluster) -> None:
    found: list[int] = []
    with pytest.raises(WorkerError) as caught, Distributed(dies, state_of(tmp_path), local) as distributed:
        found += [index for index, _ in distributed.run(range(6))]
    assert is_one_line(caught.value, "lost a task 4 times", "`workers`")
    assert 3 not in found


def test_an_error_of_a_task_is_the_drivers(tmp_path: Path, local: Cluster) -> None:
    with (
        pytest.raises(DataError, match=r"^image 0 has changed$") as caught,
        Distributed(fails, state_of(tmp_path), local) as distributed,
    ):
        list(distributed.run([0]))
    assert type(caught.value) is DataError


def test_machines_without_the_package(tmp_path: Path, local: Cluster) -> None:
    with pytest.raises(WorkerError) as caught, Distributed(lacks, state_of(tmp_path), local) as distributed:
        list(distributed.run([0]))
    assert is_one_line(caught.value, "lacks onnxruntime", "install")


def test_machines_with_other_versions(tmp_path: Path, local: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    here = cluster._versions()
    monkeypatch.setattr(cluster, "_versions", lambda: {**here, "onnxruntime": "1.0"})
    with pytest.raises(WorkerError) as caught, Distributed(sums, state_of(tmp_path), local) as distributed:
        list(distributed.run([0]))
    assert is_one_line(caught.value, f"onnxruntime {here['onnxruntime']}, not 1.0", "install the same")


def test_no_processors(tmp_path: Path, local: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_GLANCE", 0.1)
    monkeypatch.setattr(cluster, "_PATIENCE", 0.3)
    more = Cluster(local.threads + 2, None)
    with pytest.raises(WorkerError) as caught, Distributed(sums, state_of(tmp_path), more) as distributed:
        list(distributed.run([0]))
    assert is_one_line(caught.value, "no machine", "ray start")


@pytest.mark.usefixtures("local")
def test_a_connection_that_is_there_is_used_and_kept() -> None:
    with connected("auto", 3, 2) as found:
        assert found == Cluster(1, 3)
    assert ray.is_initialized()


@pytest.mark.parametrize(
    ("address", "kind", "parts"),
    [
        ("here", SettingsError, ["`ray` here", "host:port"]),
        (
            "127.0.0.1:1",
            WorkerError,
            ["127.0.0.1:1", "Connection refused", "ray start --head --port=1,", "`ray` local"],
        ),
        ("ray://127.0.0.1:1", WorkerError, ["ray://127.0.0.1:1", "Connection refused", "--ray-client-server-port=1"]),
        ("127.0.0.1:99999", WorkerError, ["127.0.0.1:99999"]),
        ("nowhere.invalid:6379", WorkerError, ["nowhere.invalid:6379"]),
    ],
)
def test_addresses_where_nothing_is(
    address: str, kind: type[Exception], parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(kind) as caught, connected(address, None, 2):
        pass
    assert is_one_line(caught.value, *parts)


@pytest.mark.parametrize(
    "error", [ConnectionError("Could not find any\nrunning Ray instance."), RuntimeError("Version mismatch:\n Ray: 1")]
)
def test_a_cluster_that_takes_nobody(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(WorkerError) as caught, connected("auto", None, 2):
        pass
    assert is_one_line(caught.value, "auto", str(error).split("\n")[0].rstrip(":"), "`ray` local")


def test_a_cluster_that_is_gone(tmp_path: Path, local: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise ConnectionError("the channel is closed")

    monkeypatch.setattr(ray, "wait", gone)
    with pytest.raises(WorkerError) as caught, Distributed(sums, state_of(tmp_path), local) as distributed:
        list(distributed.run([0]))
    assert is_one_line(caught.value, "the channel is closed", "again")


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError) as caught, connected("local", None, 2):
        pass
    assert is_one_line(caught.value, 'pip install "infoq-onnx[ray]"')


@pytest.mark.parametrize(("workers", "expected"), [(None, (2, 1)), (1, (2, 2)), (3, (3, 1))])
def test_processors_of_a_cluster_on_this_machine(
    workers: int | None, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda address, **options: started.append((address, options["num_cpus"])))
    monkeypatch.setattr(ray, "shutdown", lambda: started.append("ended"))
    with connected("local", workers, 2) as found:
        assert found == Cluster(expected[1], None)
    assert started == [("local", expected[0]), "ended"]


def test_what_is_sent_needs_no_package_to_be_unpacked(tmp_path: Path) -> None:
    """So that a machine without this package says so."""
    (tmp_path / "function").write_bytes(ray.cloudpickle.dumps(cluster._function()))
    code = (
        "import sys, ray.cloudpickle as pickle; sys.modules['infoq_onnx'] = None\n"
        "try: pickle.load(open(sys.argv[1], 'rb'))([None], b'')\n"
        "except ModuleNotFoundError as error: print(error.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "function")], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("infoq_onnx"), done.stderr


def test_an_interruption_waits_for_what_is_native() -> None:
    done: list[bool] = []

    def work() -> None:
        with cluster._held_back():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            done.append(True)
        pytest.fail("it was lost")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # no other thread is ever interrupted
    other = threading.Thread(target=lambda: cluster._held_back().__enter__())
    other.start()
    other.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
