"""Tasks in other processes: what they see, and what happens when they or the driver die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from infoq_onnx.errors import DataError, OutputError, WorkerError
from infoq_onnx.execute.processes import Processes
from infoq_onnx.execute.serial import Serial
from infoq_onnx.memory import peak, peak_of_children, resident
from tests.execute.workers import State, dies, dies_once, fails, sums
from tests.prepared import is_one_line

LARGE, SMALL = 200_000, 100


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Whatever is left behind there is seen."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def state_of(tmp_path: Path, size: int = SMALL) -> State:
    return State(np.arange(size, dtype=np.float64), tmp_path)


def until(done: Callable[[], bool]) -> None:
    """Wait for what happens soon."""
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # a zombie has ended, and is only waited for
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_results_are_those_of_one_process(size: int, tmp_path: Path, place: Path) -> None:
    state = state_of(tmp_path, size)
    alone = {index: result[0] for index, result in Serial(sums(state)).run(range(10, 30))}
    with Processes(sums, state, 2, place) as processes:
        found = dict(processes.run(range(10, 30)))
        again = dict(processes.run([5]))
    assert {index: value for index, (value, _, _) in found.items()} == alone
    assert again[0][0] == state.values.sum() + 5
    pids = {pid for _, pid, _ in found.values()}
    assert os.getpid() not in pids
    assert len(pids) <= 2
    # a large array is mapped, not copied into each process
    assert {writeable for _, _, writeable in found.values()} == {size == SMALL}
    assert list(place.iterdir()) == []


def test_serial_keeps_the_order(tmp_path: Path) -> None:
    assert [index for index, _ in Serial(sums(state_of(tmp_path))).run([3, 1, 2])] == [0, 1, 2]


def test_nothing_to_do_starts_nothing(tmp_path: Path, place: Path) -> None:
    with Processes(sums, state_of(tmp_path), 2, place) as processes:
        assert list(processes.run([])) == []
        assert list(place.iterdir()) == []


def test_what_a_dead_process_had_in_hand_is_done_by_another(tmp_path: Path, place: Path) -> None:
    with Processes(dies_once, state_of(tmp_path), 2, place) as processes:
        found = list(processes.run(range(8)))
    assert sorted(found) == [(task, -task) for task in range(8)]
    assert (tmp_path / "died").exists()


def test_processes_that_always_die_are_given_up(tmp_path: Path, place: Path) -> None:
    found: list[int] = []
    with pytest.raises(WorkerError) as caught, Processes(dies, state_of(tmp_path), 2, place) as processes:
        found += [index for index, _ in processes.run(range(6))]
    assert is_one_line(caught.value, "died 3 times", "`workers`")
    assert 3 not in found
    assert list(place.iterdir()) == []


def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path, place: Path) -> None:
    """Each new process runs the script once more, and may not start processes itself."""
    script = tmp_path / "driver.py"
    body = DRIVER.replace('if __name__ == "__main__":', "if True:").replace("sleeps", "sums")
    script.write_text(body, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, str(script), str(tmp_path), str(place)]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert 'put its call under `if __name__ == "__main__":`' in done.stderr
    assert list(place.iterdir()) == []


def test_an_error_of_a_task_is_the_drivers(tmp_path: Path, place: Path) -> None:
    with (
        pytest.raises(DataError, match="image 0 has changed"),
        Processes(fails, state_of(tmp_path), 1, place) as processes,
    ):
        list(processes.run([0]))


def test_no_room_for_what_they_need(tmp_path: Path, place: Path) -> None:
    place.rmdir()
    with pytest.raises(OutputError) as caught, Processes(sums, state_of(tmp_path), 2, place) as processes:
        list(processes.run([1]))
    assert is_one_line(caught.value, str(place), "worker processes", "`workers` 1")


def test_what_a_killed_driver_left_goes_with_the_next(tmp_path: Path, place: Path) -> None:
    (place / ".workers-old").mkdir()
    (place / ".workers-old" / "state").write_bytes(b"left")
    with Processes(sums, state_of(tmp_path), 1, place) as processes:
        list(processes.run([1]))
    assert list(place.iterdir()) == []


DRIVER = """
import sys
from pathlib import Path
import numpy as np
from infoq_onnx.execute.processes import Processes
from tests.execute.workers import State, sleeps

if __name__ == "__main__":
    with Processes(sleeps, State(np.zeros(300_000), Path(sys.argv[1])), 2, Path(sys.argv[2])) as processes:
        list(processes.run([1, 2]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_their_driver(how: signal.Signals, tmp_path: Path, place: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER, encoding="utf-8")
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), str(place)], env=environment, stderr=subprocess.PIPE
    ) as driver:
        until(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
        workers = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
        assert all(alive(pid) for pid in workers)
        driver.send_signal(how)
        driver.wait(30)
        until(lambda: not any(alive(pid) for pid in workers))
    until(lambda: list(place.iterdir()) == [])


@pytest.mark.parametrize(("memory", "expected"), [(100, 1), (1100, 1), (1900, 2), (2900, 3), (10**9, 3)])
def test_as_many_processes_as_have_room(
    memory: int, expected: int, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the first has taken, and what this one has."""
    monkeypatch.setattr("infoq_onnx.execute.processes.resident", lambda: 100)
    monkeypatch.setattr("infoq_onnx.execute.processes.peak_of_children", lambda: 900)
    with Processes(sums, state_of(tmp_path), 3, place, memory) as processes:
        assert processes.workers == 1
        found = dict(processes.run(range(6)))
        assert processes.workers == expected
        # it is measured once
        assert dict(processes.run([7]))[0][0] == found[0][0] + 7
    assert sorted(found) == list(range(6))
    assert len({pid for _, pid, _ in found.values()} - {found[0][1]}) <= expected


def test_what_a_process_takes_is_seen(tmp_path: Path, place: Path) -> None:
    with Processes(sums, state_of(tmp_path), 2, place, 1) as processes:
        assert dict(processes.run(range(2)))
    # an interpreter with numpy, and not the sum of them
    assert 2**24 < peak_of_children() < 2**33
    # the kernel brings what it counts up to date some pages at a time
    assert 2**24 < resident() < 1.05 * peak()


def test_a_first_task_that_kills_its_process(tmp_path: Path, place: Path) -> None:
    with Processes(dies_once, state_of(tmp_path), 2, place, 1) as processes:
        assert dict(processes.run([3, 5])) == {0: -3, 1: -5}
    with Processes(dies, state_of(tmp_path), 2, place, 1) as processes, pytest.raises(WorkerError):
        dict(processes.run([3, 5]))
