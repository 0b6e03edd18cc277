"""Y where images have no classmates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infoq_onnx.analyses import read_analysis, read_analyzed
from infoq_onnx.pipeline import analyze
from infoq_onnx.reporter import Silent
from infoq_onnx.sensitivity.targets import GROUP_SIZE, groups, has_classmates
from tests.networks import residual_convnet
from tests.prepared import ready


class Notes(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(
    ("labels", "neighbours", "expected"),
    [
        ([0, 1, 2, 3], 1, False),
        ([0, 0, 1, 1], 1, True),
        ([0, 0, 1, 1], 2, False),
        ([0, 0, 0, 0, 1, 2, 3, 4], 3, True),
        ([0, 0, 0, 0, 1, 2, 3, 4, 5], 3, False),
    ],
)
def test_classmates_are_counted_without_oneself(labels: list[int], neighbours: int, expected: bool) -> None:
    assert has_classmates(np.array(labels), neighbours) is expected


def test_groups_are_the_clusters_of_the_log_probabilities() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), GROUP_SIZE)
    logits = (10 * np.eye(4)[truth] + rng.normal(size=(len(truth), 4))).astype(np.float32)
    order = rng.permutation(len(truth))
    found = groups(logits[order])
    # the same partition as the truth, whatever the groups are called
    pairs = set(zip(truth[order].tolist(), found.tolist(), strict=True))
    assert len(pairs) == 4
    np.testing.assert_array_equal(found, groups(logits[order]))
    # a constant added to an image's logits changes nothing
    np.testing.assert_array_equal(found, groups(logits[order] + rng.integers(-5, 5, size=(len(truth), 1))))


def test_few_samples_make_two_groups() -> None:
    assert set(groups(np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)).tolist()) == {1, 2}


def test_images_without_classmates_are_analysed(tmp_path: Path) -> None:
    network = ready(residual_convnet()).network
    count = 32
    rng = np.random.default_rng(2)
    x = rng.normal(size=(count, *network.input_shape)).astype(np.float32)
    model = tmp_path / "model.onnx"
    model.write_bytes(residual_convnet().SerializeToString())
    # labels with too few of each to have 15 neighbours in their class
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(count) % network.classes)
    notes = Notes()
    settings: dict[str, Any] = {"bits": (2, 8), "projections": 2, "neighbours": 15, "observers": "selected"}
    folder = analyze(model, tmp_path / "data.npz", output=tmp_path / "a", reporter=notes, **settings)
    found = read_analysis(folder)
    assert found.calibration.targets == "groups"
    assert found.calibration.labels == "true"
    assert found.model.float_top1 is not None
    assert any("groups of images" in text for text in notes.said)
    assert read_analyzed(folder).scores["infoq"].scores
