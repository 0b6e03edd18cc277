"""Work of trials, counted by hand."""

from __future__ import annotations

import pytest

from infoq_onnx.schema import units_of
from infoq_onnx.sensitivity.trials import Task
from infoq_onnx.sensitivity.work import _OVERHEAD, work_of
from infoq_onnx.simulate.running import streams
from infoq_onnx.simulate.running.prefix import Prefix
from tests.prepared import small


def test_what_lies_behind_runs_once_a_width() -> None:
    of = small("residual")
    macs = {layer.name: layer.macs for layer in of.network.layers}
    total = sum(macs.values())
    tasks = {unit.name: Task(unit, (2, 3, 4)) for unit in units_of(of.network)}
    work = dict(
        zip(
            tasks,
            work_of(of.graph, of.network, Prefix(of.graph, of.network, of.dataset), list(tasks.values())),
            strict=True,
        )
    )
    assert work["stem"] == pytest.approx(3 * total + 3 * _OVERHEAD * total)
    assert work["fc"] == pytest.approx(3 * macs["fc"] + 3 * _OVERHEAD * total)
    # the shortcut's own branch, and what comes behind both
    behind = macs["b_short"] + macs["fc"]
    assert work["b_short"] == pytest.approx(3 * behind + 3 * _OVERHEAD * total)


def test_what_is_too_large_to_be_carried_is_run_again_for_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    of = small("residual")
    prefix = Prefix(of.graph, of.network, of.dataset)
    macs = [layer.macs for layer in of.network.layers]
    assert prefix.macs_to_carry() == sum(macs[:-1])
    assert prefix.macs_to("fc_w") == 0
    monkeypatch.setattr(streams, "_KEPT_BYTES", 0)
    prefix = Prefix(of.graph, of.network, of.dataset)
    assert (prefix.macs_to_carry(), max(prefix.stored_bytes())) == (0, 0)
    assert prefix.macs_to("stem_w") == 0
    assert prefix.macs_to("fc_w") == sum(macs[:-1])
