"""Work of trials, counted by hand."""

from __future__ import annotations

import pytest

from infoq_onnx.sensitivity.trials import Task, units
from infoq_onnx.sensitivity.work import _OVERHEAD, work_of
from tests.prepared import small


def test_what_lies_behind_runs_once_a_width() -> None:
    of = small("residual")
    macs = {layer.name: layer.macs for layer in of.network.layers}
    total = sum(macs.values())
    tasks = {unit.name: Task(unit, (2, 3, 4), (), ()) for unit in units(of.network)}
    work = dict(zip(tasks, work_of(of.graph, of.network, list(tasks.values())), strict=True))
    assert work["stem"] == pytest.approx(3 * total + 3 * _OVERHEAD * total)
    assert work["fc"] == pytest.approx(3 * macs["fc"] + 3 * _OVERHEAD * total)
    # the shortcut's own branch, and what comes behind both
    behind = macs["b_short"] + macs["fc"]
    assert work["b_short"] == pytest.approx(3 * behind + 3 * _OVERHEAD * total)
