"""Mixed precision against uniform bits on cifar10_resnet20, rounded to nearest, and three exports of that network.

Rounding to nearest shows what the choice of bits alone is worth; `low_bit.py` has the accuracy of the default rounding.

    python benchmarks/cifar10.py SHARED WORK -o docs/benchmarks/cifar10.md

SHARED is the folder with the real models and images, WORK a folder for analyses (finished ones are used again). Every
figure comes from the command line of the tool, on test images that calibration has not seen.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from page import is_finished, versions

from infoq_onnx import read_analysis

MODELS = ("cifar10_resnet20", "cifar10_resnet20_bn", "cifar10_resnet20_dynamo")
BUDGETS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("weights 10.66× smaller, activations 8 bits", ("--compression", "10.66", "--weight-only")),
    ("BitOps of uniform 3/3", ("--bitops", "uniform:3/3")),
    ("BitOps of uniform 4/4", ("--bitops", "uniform:4/4")),
)
NEAREST = ("--rounding", "nearest")
UNIFORM = (("3", "8"), ("3", "3"), ("4", "4"))
"""The uniform configuration beside each budget."""


def run(*arguments: str, cwd: Path) -> str:
    """Run the tool and return what it printed."""
    print("infoq-onnx", *arguments, flush=True)
    result = subprocess.run(("infoq-onnx", *arguments), cwd=cwd, check=True, stdout=subprocess.PIPE, text=True)
    return result.stdout


def main() -> None:
    """Run everything and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--date", required=True)
    arguments = parser.parse_args()
    shared, work = arguments.shared.resolve(), arguments.work.resolve()
    images = shared / "data" / "cifar10"

    def evaluated(model: Path) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(
            run("evaluate", str(model), "--data", str(images / "test"), "--preprocess", "imagenet", "--json", cwd=work)
        )
        return result

    bits: dict[str, dict[str, list[int]]] = {budget: {} for budget, _ in BUDGETS}
    rows = []
    for model in MODELS:
        if not is_finished(work / f"{model}.infoq"):
            path = str(shared / "models" / f"{model}.onnx")
            options = ("--preprocess", "imagenet", "--samples", "1000", "--trial-rounding", "nearest", "--json")
            run("analyze", path, "--calib", str(images / "calib"), "--effort", "full", *options, cwd=work)
        network = read_analysis(work / f"{model}.infoq").network
        for (budget, flags), (weight, activation) in zip(BUDGETS, UNIFORM, strict=True):
            allocation = json.loads(
                run("allocate", f"{model}.infoq", *flags, "-o", "o.onnx", *NEAREST, "--json", cwd=work)
            )
            # JSON sorts by name, and names differ between exporters: compare in topological order
            bits[budget][model] = [
                *(allocation["weight_bits"][layer.name] for layer in network.layers),
                *(allocation["activation_bits"][group.name] for group in network.groups),
            ]
            if model == MODELS[0]:
                pair = f"{weight}/{activation}"
                cells = []
                for choice in (flags, ("--uniform", pair)):
                    run("allocate", f"{model}.infoq", *choice, "-o", "o.onnx", *NEAREST, "--json", cwd=work)
                    cells.append(evaluated(work / "o.onnx"))
                rows.append((budget, pair, cells))
    float_model = evaluated(shared / "models" / f"{MODELS[0]}.onnx")

    interval = float_model["top1_interval"]
    lines = [
        "# cifar10_resnet20: mixed against uniform bits, rounded to nearest",
        "",
        f"{arguments.date}; {versions('infoq-onnx', 'onnxruntime', 'numpy')}; made by "
        "`python benchmarks/cifar10.py SHARED WORK`.",
        "Calibration: 1000 of the 5085 training images (`--samples 1000 --seed 0`). Accuracy: top-1 on all 1017 test",
        "images, with its 95 % interval. The test images were not used for tuning.",
        f"Float: {100 * float_model['top1']:.2f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}].",
        "",
        "| budget | mixed | uniform bits | uniform |",
        "|---|---|---|---|",
    ]
    for budget, pair, cells in rows:
        texts = [
            f"{100 * cell['top1']:.2f} % [{100 * cell['top1_interval'][0]:.1f}, {100 * cell['top1_interval'][1]:.1f}]"
            for cell in cells
        ]
        lines.append(f"| {budget} | {texts[0]} | {pair} | {texts[1]} |")
    lines += [
        "",
        "## One network, exported in three ways",
        "",
        "The same weights were exported with BatchNormalization folded, with BatchNormalization kept, and by "
        "torch.export. The",
        "table counts the variables whose bits differ from the first file. There are 40: 20 layers and 20 activation "
        "groups.",
        "",
        "| budget | _bn | _dynamo | largest difference, bits |",
        "|---|---|---|---|",
    ]
    for budget, by_model in bits.items():
        first = by_model[MODELS[0]]
        gaps = [[abs(a - b) for a, b in zip(first, by_model[model], strict=True)] for model in MODELS[1:]]
        counts = " | ".join(str(sum(gap > 0 for gap in each)) for each in gaps)
        lines.append(f"| {budget} | {counts} | {max(map(max, gaps))} |")
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
