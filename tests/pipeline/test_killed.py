"""Killed at a dozen random moments, with one process and with two, an analysis ends with the same bytes."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.networks import residual_convnet
from tests.pipeline.cases import CODES, NAMES, content, data_for, files_of, saved

KILLS = 12
FILES = (*NAMES, CODES)
CODE = "from infoq_onnx.cli import main; main()"


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    model = saved(residual_convnet(), tmp_path / "model.onnx")
    calib = data_for(residual_convnet(), tmp_path / "calib.npz", 64)
    options = ["--bits", "2,3,4,6,8", "--projections", "16", "--observers", "selected"]

    def started(folder: Path, workers: int) -> subprocess.Popen[bytes]:
        command = ["analyze", str(model), "--calib", str(calib), *options, "--workers", str(workers)]
        arguments = [sys.executable, "-c", CODE, *command, "-o", str(folder)]
        return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    begun = time.monotonic()
    assert started(tmp_path / "whole.infoq", 1).wait() == 0
    whole = time.monotonic() - begun
    expected = content(tmp_path / "whole.infoq", *FILES)

    moments = random.Random(0)
    kills = finished = 0
    complete = True
    while kills < KILLS or not complete:
        folder = tmp_path / f"killed-{finished}.infoq"
        run = started(folder, 1 + kills % 2)
        complete = False
        try:
            # from before the first line is read to after the last is written
            code = run.wait(moments.uniform(0, 1.2 * whole) if kills < KILLS else None)
            assert code == 0
            assert content(folder, *FILES) == expected
            assert files_of(folder) == sorted(FILES)
            complete = True
            finished += 1
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
            kills += 1
