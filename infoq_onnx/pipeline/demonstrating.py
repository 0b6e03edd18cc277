"""The whole path on the embedded model."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from infoq_onnx.analyses import created
from infoq_onnx.demo import demo_calibration_path, demo_model_path, demo_test_path
from infoq_onnx.pipeline.allocating import allocate
from infoq_onnx.pipeline.analyzing import analyze
from infoq_onnx.pipeline.evaluating import evaluate
from infoq_onnx.reporter import Reporter, Silent
from infoq_onnx.schema import (
    DemoRow,
)


def demo(output: Path | str | None = None, *, reporter: Reporter | None = None) -> list[DemoRow]:
    """Run the whole path on the embedded model and images: analyze, then allocate uniform 4/4 and mixed bits that cost
    the same, then evaluate on images that were not used before.

    Weights are rounded to nearest, which takes no time, and shows what the choice of bits alone is worth.

    Parameters
    ----------
    output : folder to keep the files in; None works in a temporary one
    reporter : receives progress
    """
    reporter = reporter or Silent()
    with contextlib.ExitStack() as stack:
        if output is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = Path(output)
            stack.enter_context(created(folder))
        model = stack.enter_context(demo_model_path())
        images, test = stack.enter_context(demo_calibration_path()), stack.enter_context(demo_test_path())
        analysis = analyze(model, images, trial_rounding="nearest", output=folder / "demo.infoq", reporter=reporter)
        uniform_model = allocate(analysis, uniform_bits=(4, 4), rounding="nearest", output=folder / "uniform.onnx")
        mixed_model = allocate(
            analysis, bounds={"bitops": "uniform:4/4"}, rounding="nearest", output=folder / "mixed.onnx"
        )
        return [
            DemoRow("float", uniform_model.before, evaluate(model, test)),
            DemoRow("uniform 4/4", uniform_model.allocation.costs, evaluate(uniform_model.model_path, test)),
            DemoRow("mixed, same BitOps", mixed_model.allocation.costs, evaluate(mixed_model.model_path, test)),
        ]
