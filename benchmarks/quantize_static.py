"""Accuracy and size of what onnxruntime's own quantizer makes of the real models, for comparison.

    python benchmarks/quantize_static.py SHARED -o docs/benchmarks/quantize_static.md --date 2026-11-26

8 bits for all: QDQ, uint8 activations, int8 weights per channel, ranges from the extremes (its default), after
quant_pre_process; once with all operators it can quantize (its default), and once with those that multiply by weights.
It sees the calibration images that benchmarks/low_bit.py gives our tool, and is evaluated on the same test images, by
the kernels of the processor that runs this.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from pathlib import Path

from latency import Images
from low_bit import CASES, Case
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from page import page_parser, versions

from infoq_onnx import evaluate
from infoq_onnx.emit.targets import lacks_vnni
from infoq_onnx.preparation import load_samples, prepare
from infoq_onnx.schema import Evaluation


def quantized(shared: Path, model: str, case: Case, operators: list[str] | None) -> Evaluation:
    """Quantize a model and evaluate the result beside it."""
    images, path = shared / "data" / case.images, shared / "models" / f"{model}.onnx"
    classes = images / "classes.txt" if case.classes else None
    prepared = prepare(path)
    dataset = load_samples(prepared, images / "calib", classes, case.preprocess, case.samples, 0)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        ready, static = Path(folder) / "ready.onnx", Path(folder) / "static.onnx"
        quant_pre_process(str(path), str(ready))
        quantize_static(
            str(ready),
            str(static),
            Images(prepared.network.input, [image for batch in dataset.batches(16) for image in batch]),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=operators,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return evaluate(static, images / "test", classes=classes, preprocessing=case.preprocess, against=path)


def main() -> None:
    """Quantize, evaluate and write the page."""
    parser = page_parser(__doc__)
    parser.add_argument("shared", type=Path)
    parser.add_argument("models", nargs="*", help="of which models [all]")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    has = "lacks" if lacks_vnni() else "has"
    lines = [
        "# onnxruntime's quantize_static",
        "",
        f"{arguments.date}; {versions('infoq-onnx', 'onnxruntime', 'numpy')};",
        "made by `python benchmarks/quantize_static.py SHARED`. All bits are 8 (QDQ, uint8 activations, int8 weights",
        "per channel, min-max ranges), after quant_pre_process. The calibration and test images are those of",
        f"[low_bit.md](low_bit.md). The processor {has} VNNI.",
        "",
        "| model | operators | float, top-1 | quantize_static, top-1 | float, bytes | quantize_static, bytes |",
        "|---|---|---|---|---|---|",
    ]
    for model, case in CASES.items():
        if model not in (arguments.models or CASES):
            continue
        for operators in (None, ["Conv", "Gemm", "MatMul"]):
            found = quantized(arguments.shared, model, case, operators)
            top1 = [f"{100 * (share or 0):.2f} %" for share in (found.reference_top1, found.top1)]
            which = "all" if operators is None else ", ".join(operators)
            sizes = f"{found.reference_bytes:,} | {found.file_bytes:,}"
            lines.append(f"| {model} | {which} | {' | '.join(top1)} | {sizes} |")
            print(lines[-1], flush=True)
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
