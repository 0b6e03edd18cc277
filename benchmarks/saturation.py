"""What files lose on x86 processors without VNNI, and what it costs that they lose nothing there.

    python benchmarks/saturation.py SHARED WORK -o docs/benchmarks/saturation.md --date 2026-11-26 \
        cifar10_resnet20 mobilenetv1_025 mobilenetv2 squeezenet1_1

WORK keeps the analyses (those of benchmarks/default_criterion.py, made where they are missing) and the figures; what is
there is not done again. Every model is run on the test images in three ways: with quantizers computed one by one in
float, with this processor's integer kernels, and with those of a processor without VNNI. For these VNNI is hidden by
benchmarks/without_vnni.c, which needs Linux on x86-64, a C compiler and a processor that can intercept CPUID.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from default_criterion import CASES, analysis_of
from page import models_parser, versions

from infoq_onnx import allocate
from infoq_onnx.emit.kernels import find_kernels
from infoq_onnx.emit.targets import lacks_vnni
from infoq_onnx.graph.load import read_any
from infoq_onnx.graph.session import open_session
from infoq_onnx.preparation import PreparedModel, load_samples, prepare
from infoq_onnx.simulate.running.batching import batch_size, logits_of

TARGETS = ("x86-vnni", "any")
BUDGETS: dict[str, dict[str, Any]] = {
    "uniform 8/8": {"uniform_bits": (8, 8)},
    "weights 8× smaller": {"bounds": {"compression": "8"}, "weight_only": True},
    "weights 10.66× smaller": {"bounds": {"compression": "10.66"}, "weight_only": True},
}
RUN = "--run"


def test_images(shared: Path, model: str, prepared: PreparedModel) -> Any:
    images = shared / "data" / CASES[model].images
    classes = images / "classes.txt" if (images / "classes.txt").exists() else None
    return load_samples(prepared, images / "test", classes, CASES[model].preprocessing, None, 0)


def logits(shared: Path, model: str, path: Path, *, integer_kernels: bool) -> npt.NDArray[np.float32]:
    prepared = prepare(shared / "models" / f"{model}.onnx")
    session = open_session(path, integer_kernels=integer_kernels)
    return logits_of(session, prepared.graph, test_images(shared, model, prepared), batch_size(prepared.graph))


def measured(shared: Path, model: str, path: Path, library: Path | None) -> dict[str, float]:
    """Top-1 in the three ways."""
    prepared = prepare(shared / "models" / f"{model}.onnx")
    labels = test_images(shared, model, prepared).labels
    found = {
        "float": logits(shared, model, path, integer_kernels=False),
        "kernels": logits(shared, model, path, integer_kernels=True),
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.npy"
        environment = {**os.environ, **({} if library is None else {"LD_PRELOAD": str(library)})}
        subprocess.run([sys.executable, __file__, RUN, shared, model, path, out], env=environment, check=True)
        found["without VNNI"] = np.load(out)
    return {way: float(np.mean(values.argmax(axis=1) == labels)) for way, values in found.items()}


def main() -> None:
    """Measure what is missing and write the page."""
    if RUN in sys.argv[1:2]:
        shared, model, path, out = sys.argv[2:]
        np.save(out, logits(Path(shared), model, Path(path), integer_kernels=True))
        return
    arguments = models_parser(__doc__, CASES).parse_args()
    shared, work = arguments.shared.resolve(), arguments.work.resolve()
    kept = work / "saturation.json"
    figures: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    library = None
    if not lacks_vnni():
        library = work / "without_vnni.so"
        source = Path(__file__).with_name("without_vnni.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    lines = [
        "# The cost of preventing saturation",
        "",
        f"{arguments.date}; {versions('infoq-onnx', 'onnxruntime', 'numpy')}; made by",
        f"`python benchmarks/saturation.py SHARED WORK {' '.join(arguments.models)}`.",
        "Top-1 on the test images, which were not used for tuning, of the files that `allocate` writes for two "
        "targets,",
        "otherwise with defaults. In float: quantizers computed one by one. Without: with the kernels of a processor",
        "without VNNI; "
        + ("VNNI is hidden from the process (benchmarks/without_vnni.c)." if library else "this processor has none."),
    ]
    for model in arguments.models:
        case = CASES[model]
        lines += [
            "",
            f"## {model}",
            "",
            f"Analysed and rounded with {case.samples} images.",
            "",
            "| bits | target | in float | with VNNI | without | layers that may saturate | layers at 8 and 7 bits "
            "| weights, bytes | file, bytes |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for budget, options in BUDGETS.items():
            for target in TARGETS:
                key = f"{model} {budget} {target}"
                if key not in figures:
                    path = work / "model.onnx"
                    given = allocate(analysis_of(shared, work, model), target=target, output=path, **options)
                    widths = list(given.allocation.weight_bits.values())
                    figures[key] = {
                        "top1": measured(shared, model, path, library),
                        "saturating": sum(kernel.saturates for kernel in find_kernels(read_any(path))),
                        "widths": [widths.count(8), widths.count(7)],
                        "weights": given.allocation.costs.weight_bytes,
                        "file": given.file_bytes,
                    }
                    kept.write_text(json.dumps(figures, indent=1, sort_keys=True))
                    print(key, figures[key], flush=True)
                one = figures[key]
                top1 = " | ".join(f"{100 * value:.1f}" for value in one["top1"].values())
                eight, seven = one["widths"]
                lines.append(
                    f"| {budget} | {target} | {top1} | {one['saturating']} | {eight}, {seven} | {one['weights']:,.0f} "
                    f"| {one['file']:,} |"
                )
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
