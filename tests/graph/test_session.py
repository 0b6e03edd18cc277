"""Sessions do not use more threads than there are processors to run them, and run on what was asked for."""

from __future__ import annotations

import os

import onnxruntime as ort
import pytest

from infoq_onnx.errors import SettingsError
from infoq_onnx.graph.session import open_session, provider_called, run_on, running_on, session_options
from tests.networks import mlp
from tests.prepared import is_one_line


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
    with running_on(azure):
        assert open_session(mlp()).get_providers() == ["AzureExecutionProvider", "CPUExecutionProvider"]
        with running_on("cpu"):
            assert open_session(mlp()).get_providers() == ["CPUExecutionProvider"]
        assert open_session(mlp()).get_providers()[0] == "AzureExecutionProvider"
    run_on(azure)
    assert open_session(mlp()).get_providers()[0] == "AzureExecutionProvider"
    run_on("cpu")
    assert open_session(mlp()).get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider", "cpuexecutionprovider"])
def test_names_of_a_provider(name: str) -> None:
    assert provider_called(name) == "CPUExecutionProvider"


@pytest.mark.parametrize("name", ["", "gpu", "ExecutionProvider"])
def test_a_provider_that_there_is_not(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        provider_called(name)
    assert is_one_line(caught.value, f"--provider {name}", "cpu", "onnxruntime-gpu")


def test_a_provider_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for CUDA on a machine without: onnxruntime says that it has it, and takes the CPU."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    started = ort.InferenceSession
    monkeypatch.setattr(
        ort, "InferenceSession", lambda model, options, providers: started(model, options, providers=providers[1:])
    )
    with running_on("cuda"), pytest.raises(SettingsError) as caught:
        open_session(mlp())
    assert is_one_line(caught.value, "--provider CUDA", "cannot start it")
