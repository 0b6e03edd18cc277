"""Sessions: their threads and providers, how large models are opened, and how want of memory is told."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from infoq_onnx.errors import SettingsError
from infoq_onnx.graph import session
from infoq_onnx.graph.ort import ORT_ERRORS, run_session
from infoq_onnx.graph.session import Runtime, open_session, provider_called, session_options, using
from tests.networks import Builder, mlp
from tests.prepared import images, is_one_line


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "100000 0\n"}, None),
        ({"cpu.max": "much\n"}, None),
        ({}, None),
    ],
)
def test_a_container_may_have_less_than_its_processors(
    files: dict[str, str], expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert session._quota(tmp_path) == expected
    monkeypatch.setattr(session, "_quota", lambda: expected)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert session.processors() == {1.5: 2, 4.0: 4, None: 8}[expected]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no processor affinity")
def test_threads_are_those_of_the_allowed_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert session_options().intra_op_num_threads == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    # 0 leaves it to onnxruntime, which counts cores, not hyperthreads
    assert session_options().intra_op_num_threads == 0


@pytest.fixture
def azure() -> str:
    """A second provider that every build of onnxruntime for the CPU has; it leaves all operators to the CPU's."""
    if "AzureExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime has one provider only")
    return "azure"


def test_sessions_run_on_the_provider_in_use(azure: str) -> None:
    assert open_session(mlp()).get_providers() == ["CPUExecutionProvider"]
    with using(Runtime(azure)):
        assert open_session(mlp()).get_providers() == ["AzureExecutionProvider", "CPUExecutionProvider"]
        with using(Runtime("cpu")):
            assert open_session(mlp()).get_providers() == ["CPUExecutionProvider"]
        assert open_session(mlp()).get_providers()[0] == "AzureExecutionProvider"
    assert open_session(mlp()).get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider", "cpuexecutionprovider"])
def test_names_of_a_provider(name: str) -> None:
    assert provider_called(name) == "CPUExecutionProvider"


@pytest.mark.parametrize("name", ["", "gpu", "ExecutionProvider"])
def test_a_provider_that_there_is_not(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        provider_called(name)
    assert is_one_line(caught.value, f"`provider` {name}", "cpu", "onnxruntime-gpu")


def test_a_provider_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for CUDA on a machine without: onnxruntime says that it has it, and takes the CPU."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    started = session.Session
    monkeypatch.setattr(
        session, "Session", lambda model, options, providers: started(model, options, providers=providers[1:])
    )
    with using(Runtime("cuda")), pytest.raises(SettingsError) as caught:
        open_session(mlp())
    assert is_one_line(caught.value, "`provider` CUDA", "cannot start it")


@pytest.mark.parametrize("full", [False, True])
def test_large_models_are_opened_from_a_file(full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is room for one; nothing is left of it."""
    x = {"x": images((12,), 3)}
    expected = run_session(open_session(mlp()), x)[0]
    monkeypatch.setattr(session, "_LARGE", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    written: list[int] = []

    def write(path: Path, content: bytes) -> None:
        written.append(len(content))
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with path.open("wb") as file:
            file.write(content)

    monkeypatch.setattr(Path, "write_bytes", write)
    np.testing.assert_array_equal(run_session(open_session(mlp()), x)[0], expected)
    assert len(written) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_lacks_memory_is_a_memory_error() -> None:
    b = Builder()
    columns = b.op("Unsqueeze", ["x", b.constant("axis", np.array([1]), np.int64)], "columns")
    many = b.op("Expand", [columns, b.constant("shape", np.array([1, 2**40, 12]), np.int64)], "many")
    model = b.model(b.gemm(b.op("ReduceMean", [many], "mean", axes=[1], keepdims=0), "fc", 12, 4), (12,), (4,))
    with pytest.raises(MemoryError) as caught:
        run_session(open_session(model), {"x": images((12,), 3)})
    assert is_one_line(str(caught.value))


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(ORT_ERRORS):
        run_session(open_session(mlp()), {"x": images((11,), 3)})
