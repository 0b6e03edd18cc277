"""The plug-in of docs/criteria.md, installed as another package would be, and used from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from infoq_onnx.analyses import read_analyzed
from infoq_onnx.pipeline import analyze
from infoq_onnx.schema import ScoreTable, from_json
from tests.cli.process import run_process
from tests.networks import mlp
from tests.pipeline.cases import QUICK, data_for, saved

PAGE = Path(__file__).resolve().parents[2] / "docs" / "criteria.md"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages, as pip leaves them: the module, and metadata with its entry points."""
    page, folder = PAGE.read_text(encoding="utf-8"), tmp_path_factory.mktemp("packages")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (points,) = re.findall(r"```toml\n\[.*?\]\n(.*?)```", page, re.DOTALL)
    (folder / "two_criteria.py").write_text(code, encoding="utf-8")
    metadata = folder / "two_criteria-1.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: two-criteria\nVersion: 1.5\n")
    (metadata / "entry_points.txt").write_text(f"[infoq_onnx.criteria]\n{points}".replace('"', ""))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    model, calib = saved(mlp(), folder / "model.onnx"), data_for(mlp(), folder / "data.npz")
    analyze(model, calib, output=folder / "model.infoq", **QUICK)
    return folder


def run(installed: Path, place: Path, *arguments: str) -> str:
    before = f"import sys; sys.path.append({str(installed)!r})"
    result = run_process(*arguments, before=before, cwd=place)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_it_takes_about_twenty_lines() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20


def test_both_criteria_are_listed_with_their_package(installed: Path, place: Path) -> None:
    listed = {one["name"]: one for one in json.loads(run(installed, place, "criteria", "--json"))["criteria"]}
    assert listed["largest"]["options"] == {"power": [1.0, "Of the largest weight."]}
    assert listed["spread"]["needs"] == ["activations"]
    assert listed["largest"]["package"] == listed["spread"]["package"] == "two-criteria 1.5"
    assert "--power" in run(installed, place, "score", "--help")


def test_one_that_needs_weights_is_computed_by_allocate(installed: Path, place: Path) -> None:
    run(installed, place, "allocate", "model.infoq", "--compression", "8", "--criterion", "largest", "-o", "a.onnx")
    scores = {
        (one.unit.name, one.bits): one.value for one in read_analyzed(place / "model.infoq").scores["largest"].scores
    }
    assert len(scores) == 6
    found = json.loads((place / "a.json").read_text())
    assert found["criterion"] == "largest"
    # the larger weight costs more at 2 bits
    assert scores["fc1", 2] == pytest.approx(16 * scores["fc1", 4])


def test_one_that_needs_activations_is_asked_for_by_name(installed: Path, place: Path) -> None:
    budget = ("--avg-act-bits", "4", "--criterion", "spread", "-o", "b.onnx")
    before = f"import sys; sys.path.append({str(installed)!r})"
    refused = run_process("allocate", "model.infoq", *budget, before=before, cwd=place)
    assert refused.returncode == 2
    assert re.search(
        r"no scores by spread; make them with: infoq-onnx score model.infoq/\w+ --criterion spread", refused.stderr
    )
    table = from_json(ScoreTable, run(installed, place, "score", "model.infoq", "--criterion", "spread", "--json"))
    x = np.load(place / "data.npz")["x"].astype(np.float64)
    assert {one.unit.kind for one in table.scores} == {"activation"}
    # one batch holds all images
    assert table.scores[0].value == pytest.approx(np.mean(x**2) / 16, rel=1e-5)
    run(installed, place, "allocate", "model.infoq", *budget)


def test_other_options_give_other_scores(installed: Path, place: Path) -> None:
    command = ("score", "model.infoq", "--criterion", "largest", "--json")
    plain, squared = (from_json(ScoreTable, run(installed, place, *command, *more)) for more in ((), ("--power", "2")))
    assert plain.options == {"power": 1.0}
    assert squared.options == {"power": 2.0}
    for one, other in zip(plain.scores, squared.scores, strict=True):
        assert other.value == pytest.approx(one.value**2 * 4**one.bits)
