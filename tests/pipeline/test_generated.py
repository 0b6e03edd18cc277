"""Generated classifiers, all the way through: `benchmarks/generated.py` records a run of many more."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from hypothesis import HealthCheck, Phase, given, settings

from infoq_onnx.evaluation import open_classifier
from infoq_onnx.pipeline import allocate, analyze
from tests.generated import classifiers
from tests.pipeline.cases import QUICK
from tests.prepared import images


def scores(path: Path, values: np.ndarray) -> np.ndarray:
    classifier = open_classifier(path)
    size = classifier.batch or len(values)
    found = [classifier.run(values[at : at + size]) for at in range(0, len(values), size)]
    return np.concatenate(found).astype(np.float64)


@settings(
    max_examples=8,
    phases=[Phase.generate],
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(classifiers())
def test_what_is_written_computes_what_was_simulated_and_about_what_float_does(model: onnx.ModelProto) -> None:
    """That the file computes what was simulated, allocate checks itself."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(model, folder / "model.onnx")
        values = images(tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]), 24)
        np.savez(folder / "data.npz", x=values)
        found = analyze(folder / "model.onnx", folder / "data.npz", output=folder / "a.infoq", **QUICK)
        allocate(found, bounds={"compression": 5}, weight_only=True, output=folder / "small.onnx")
        allocate(found, uniform_bits=(8, 8), rounding="nearest", output=folder / "wide.onnx")
        expected, actual = (scores(folder / name, values) for name in ("model.onnx", "wide.onnx"))
        assert np.sqrt(((actual - expected) ** 2).mean()) <= 0.1 * expected.std()
