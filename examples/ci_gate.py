"""A gate for continuous integration: exit code 1 when a compressed model is too large or too wrong.

    python examples/ci_gate.py

The embedded model stands for yours. It is compressed on the spot, its weights 8× smaller with activations at 8 bits;
the files go into the working folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from infoq_onnx import allocate, analyze, evaluate
from infoq_onnx.demo import demo_calibration_path, demo_model_path, demo_test_path

MAX_BYTES = 60_000
MAX_DROP = 0.05
"""Of top-1, as a share of 1."""


def complaints(model: Path, data: Path, reference: Path, max_bytes: int, max_drop: float) -> list[str]:
    """Say what is wrong with a model.

    The drop counts with the unfavourable end of its 95 % interval: with few images the gate asks for more, not less.
    """
    found = evaluate(model, data, against=reference)
    if found.top1_difference_interval is None:
        return [f"{data} has no labels"]
    drop = -found.top1_difference_interval[0]
    wrong = []
    if found.file_bytes > max_bytes:
        wrong.append(f"{model} has {found.file_bytes} bytes, more than {max_bytes}")
    if drop > max_drop:
        wrong.append(f"{model} may lose {drop:.2%} of top-1, more than {max_drop:.2%}")
    return wrong


def main(**options: Any) -> int:
    """Compress, judge, and return the exit code; `options` are those of `analyze`."""
    with demo_model_path() as model, demo_calibration_path() as images, demo_test_path() as test:
        analysis = analyze(model, images, **options)
        small = allocate(analysis, bounds={"compression": "8"}, weight_only=True)
        wrong = complaints(small.model_path, test, model, MAX_BYTES, MAX_DROP)
    for complaint in wrong:
        print(complaint, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
