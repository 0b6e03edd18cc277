"""An analysis whose trials run on a Ray cluster, machines and processes of which are lost: the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from infoq_onnx.analyses import measurements
from infoq_onnx.execute.cluster import Distributed
from infoq_onnx.pipeline import analyze, trying
from infoq_onnx.sensitivity import blocks
from tests.networks import residual_convnet
from tests.pipeline.cases import CODES, NAMES, Case, Listener, content, data_for, files_of, measured, saved

FILES = (*NAMES, CODES)
SETTINGS: dict[str, Any] = {"bits": (2, 6, 8), "projections": 16, "observers": "selected"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A convnet, with its analysis in one process."""
    folder = tmp_path_factory.mktemp("convnet")
    model = saved(residual_convnet(), folder / "model.onnx")
    calib = data_for(residual_convnet(), folder / "calib.npz", 64)
    return Case(model, calib, analyze(model, calib, output=folder / "whole.infoq", **SETTINGS))


def processes() -> Iterator[tuple[int, int, str]]:
    """Id, parent's id, and title of each process that is not over."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if state != "Z":
                yield int(folder.name), int(parent), title


def descendants(pid: int) -> dict[int, str]:
    """Processes that a process, or those it started, have started, with their titles."""
    running, found, parents = list(processes()), dict[int, str](), {pid}
    while parents:
        children = {child: title for child, parent, title in running if parent in parents and child not in found}
        found |= children
        parents = set(children)
    return found


def at_a_task(pid: int) -> list[int]:
    """Those of them in which Ray runs a task of ours, as it writes into their titles."""
    return [child for child, title in descendants(pid).items() if title.startswith("ray::run_task")]


def until(done: Callable[[], Any]) -> Any:
    """Wait for what happens soon, and return it."""
    end = time.monotonic() + 120
    while not (found := done()):
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)
    return found


def told(said: str) -> list[str]:
    """What a command says besides its progress; first, how good the model is."""
    lines = [line for line in said.splitlines() if not line.startswith(("ranges ", "rounding ", "trials "))]
    assert lines[0].startswith("float model: ")
    return lines


def test_a_machine_that_is_lost_loses_nothing(whole: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that run trials one is lost, with what it has in hand, and does not even hang up."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    submitted: list[Any] = []
    executors: list[Distributed[Any, Any]] = []
    submit = Distributed._submit

    def noted(executor: Distributed[Any, Any], task: Any, machine: str | None) -> Any:
        submitted.append(task)
        executors.append(executor)
        return submit(executor, task, machine)

    monkeypatch.setattr(Distributed, "_submit", noted)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        machine, _ = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
        raylet = machine.all_processes["raylet"][0].process.pid
        at_the_kill: list[int] = []

        class Killer(Listener):
            def progress(self, stage: str, detail: str, done: int, total: int, share: float | None = None) -> None:
                super().progress(stage, detail, done, total, share)
                if stage != "trials" or done < 4 or at_the_kill:
                    return
                # stopped first: then no task is finished before its machine is gone
                workers = at_a_task(raylet)
                for worker in workers:
                    os.kill(worker, signal.SIGSTOP)
                in_hand = [ref for ref, task in executors[0]._running.items() if task.machine == machine.node_id]
                # nothing of it may be ready, or on its way: what has not begun, Ray itself gives to another machine
                if workers and in_hand and not ray.wait(in_hand, num_returns=1, timeout=2)[0]:
                    at_the_kill.append(measured(tmp_path / "a.infoq").journal.read_bytes().count(b'"changes"'))
                    # the end of their parent would wake those that are stopped, and they would still send their results
                    for worker in workers:
                        os.kill(worker, signal.SIGKILL)
                    cluster.remove_node(machine, allow_graceful=False)
                    return
                # it had just finished all: the next trial is waited for
                for worker in workers:
                    os.kill(worker, signal.SIGCONT)

        listener = Killer()
        folder = analyze(
            whole.model,
            whole.calib,
            output=tmp_path / "a.infoq",
            ray=cluster.address,
            reporter=listener,
            **SETTINGS,
        )
    finally:
        cluster.shutdown()
    counts = [done for done, _ in listener.stages["trials"]]
    assert 4 <= at_the_kill[0] < counts[-1]
    # what it had in hand was handed out once more
    assert len(submitted) > len(set(submitted))
    assert content(folder, *FILES) == content(whole.analysis, *FILES)
    assert files_of(folder) == sorted(FILES)


def test_the_command_is_stopped_and_goes_on(whole: Case, tmp_path: Path) -> None:
    """On a cluster of its own, of which nothing is seen, and nothing left."""
    folder = tmp_path / "a.infoq"
    options = [
        "--bits",
        "2,6,8",
        "--projections",
        "16",
        "--observers",
        "selected",
        "--workers",
        "2",
        "--ray",
        "local",
        "-o",
        str(folder),
    ]
    code = "from infoq_onnx.cli import main; main()"
    arguments = ["analyze", str(whole.model), "--calib", str(whole.calib), *options]

    def started() -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
        environment.pop("RAY_DEDUP_LOGS_SKIP_REGEX", None)
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def trials() -> int:
        begun = folder.is_dir() and measurements(folder)
        journal = begun[0].journal if begun else None
        return journal.read_bytes().count(b'"changes"') if journal is not None and journal.exists() else 0

    with started() as run:
        until(lambda: trials() >= 2)
        others = descendants(run.pid)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
        assert run.returncode == 130, said
        assert told(said)[1:] == ["stopped; the same command goes on where it was"]
        until(lambda: not {pid for pid, *_ in processes()} & set(others))
    before = trials()
    assert 2 <= before < 26
    with started() as run:
        os.kill(until(lambda: at_a_task(run.pid))[0], signal.SIGKILL)
        shown, said = run.communicate(timeout=120)
        assert run.returncode == 0, said
        assert told(said)[1:] == [f"going on with {folder}: {before} of 26 trials are done"]
        assert "raylet" not in shown
    assert content(folder, *FILES) == content(whole.analysis, *FILES)
    assert files_of(folder) == sorted(FILES)


def test_blocks_of_images(whole: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(blocks, "FIRST", 24)
    monkeypatch.setattr(trying, "TOLERATED", -1.0)
    alone = analyze(whole.model, whole.calib, output=tmp_path / "alone.infoq", **SETTINGS)
    assert sum(name.startswith("journal") for name in files_of(alone)) == 2
    on_cluster = analyze(whole.model, whole.calib, output=tmp_path / "cluster.infoq", ray="local", **SETTINGS)
    assert content(on_cluster, *files_of(alone)) == content(alone, *files_of(alone))
    assert files_of(on_cluster) == files_of(alone)
