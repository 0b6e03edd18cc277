"""Sessions do not use more threads than there are processors to run them."""

from __future__ import annotations

import os

import pytest

from infoq_onnx.graph.session import session_options


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no processor affinity")
def test_threads_are_those_of_the_allowed_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert session_options().intra_op_num_threads == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    # 0 leaves it to onnxruntime, which counts cores, not hyperthreads
    assert session_options().intra_op_num_threads == 0
