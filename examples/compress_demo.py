"""Compress the embedded model to the BitOps of 4 bits everywhere, and compare it with the float one.

    python examples/compress_demo.py

It writes digits.onnx, digits.json and the analysis model.infoq into the working folder. Started again, it uses the
trials that are there.
"""

from __future__ import annotations

from typing import Any

from infoq_onnx import compress, evaluate
from infoq_onnx.demo import demo_calibration_path, demo_model_path, demo_test_path


def main(**options: Any) -> None:
    """Compress and compare; `options` are those of `analyze`, such as projections=32 to be quicker."""
    with demo_model_path() as model, demo_calibration_path() as images, demo_test_path() as test:
        small = compress(model, images, bounds={"bitops": "uniform:4/4"}, output="digits.onnx", **options)
        found = evaluate(small.model_path, test, against=model)
    allocation = small.allocation
    for layer in small.network.layers:
        inputs = ", ".join(str(allocation.activation_bits[group]) for group in layer.groups)
        print(f"{layer.name:24s} weights {allocation.weight_bits[layer.name]} bits, input {inputs} bits")
    print(f"weights {allocation.costs.compression:.1f}× smaller, {allocation.costs.bitops:,} BitOps an image")
    print(f"top-1 {found.top1:.2%}, float {found.reference_top1:.2%}, on {found.images} images")


if __name__ == "__main__":
    main()
