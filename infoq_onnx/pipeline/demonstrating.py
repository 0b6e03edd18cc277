"""`demo`: all steps on the embedded model."""

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
    """Run all steps on the embedded model and images.

    The demo analyzes the model, allocates uniform 4/4 bits and mixed bits with the same BitOps, and evaluates both on
    test images. Weights are rounded to nearest, which takes no time and shows the effect of the choice of bits alone.

    Parameters
    ----------
    output : folder for the files; None: a temporary folder
    reporter : receives progress

    Returns
    -------
    list of DemoRow
        The float model, uniform bits and mixed bits.
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
