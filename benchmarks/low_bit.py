"""Accuracy of low-bit models on images that calibration has not seen, over draws of the calibration images.

    python benchmarks/low_bit.py SHARED WORK -o docs/benchmarks/low_bit.md --date 2026-11-21 --draws 3 cifar10_resnet20

SHARED is the folder with the real models and images. WORK keeps analyses and figures: what is there is not done again,
so the benchmark can be stopped, and other models or draws added later. Every figure comes from the tool's command line.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from page import is_finished, models_parser, versions


@dataclass(frozen=True)
class Case:
    """One model with its budgets."""

    images: str
    preprocess: str
    samples: int
    budgets: dict[str, tuple[str, ...]]
    classes: bool = False
    analyze: tuple[str, ...] = ()
    """Further options of analyze …"""
    allocate: tuple[str, ...] = ()
    """… and of allocate."""
    criteria: tuple[str, ...] = ("kl",)


WEIGHTS = {f"weights {ratio}× smaller": ("--compression", ratio, "--weight-only") for ratio in ("8", "10.66", "14")}
BITOPS = {f"BitOps of {bits}": ("--bitops", f"uniform:{bits}") for bits in ("6/6", "5/5", "4/4")}
# with 1000 classes and one image of each, InfoQ's scores are noise (docs/benchmarks/low_bit.md): few directions will do
IMAGENET = ("--projections", "32")
# rounding gains by more images than the sweep needs (same page)
ROUNDED_BY = ("--samples", "500")
CASES = {
    "cifar10_resnet20": Case(
        "cifar10",
        "imagenet",
        1000,
        {
            "uniform 3/8": ("--uniform", "3/8"),
            "uniform 2/8": ("--uniform", "2/8"),
            "weights 10.66× smaller": WEIGHTS["weights 10.66× smaller"],
            "weights 14× smaller": WEIGHTS["weights 14× smaller"],
            "weights 16× smaller": ("--compression", "16", "--weight-only"),
            "BitOps of 3/3": ("--bitops", "uniform:3/3"),
            "BitOps of 4/4": BITOPS["BitOps of 4/4"],
        },
    ),
    "mobilenetv2": Case("imagenet", "tf", 200, {**WEIGHTS, **BITOPS}, True, IMAGENET, ROUNDED_BY, ("kl",)),
    "squeezenet1_1": Case(
        "imagenet",
        "imagenet",
        200,
        {name: WEIGHTS[name] for name in ("weights 8× smaller", "weights 10.66× smaller")},
        True,
        IMAGENET,
        ROUNDED_BY,
        ("kl",),
    ),
    "vit_tiny": Case(
        "imagenet",
        "tf",
        200,
        {"uniform 8/8": ("--uniform", "8/8"), "weights 8× smaller": WEIGHTS["weights 8× smaller"]},
        True,
        ("--bits", "3,4,5,6,8", "--projections", "16", "--weight-only"),
        ROUNDED_BY,
        ("kl",),
    ),
}


class Bench:
    """Runs the tool and remembers what it found."""

    def __init__(self, shared: Path, work: Path, analyze_options: list[str]) -> None:
        self.shared, self.work, self.analyze_options = shared, work, analyze_options
        self._path = work / "figures.json"
        self.figures: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def run(self, *arguments: str) -> tuple[str, float, int]:
        """Run the tool. Return what it printed, the seconds it took, and the peak of its resident memory in bytes."""
        print("infoq-onnx", *arguments, flush=True)
        start = time.monotonic()
        with subprocess.Popen(("infoq-onnx", *arguments), cwd=self.work, stdout=subprocess.PIPE, text=True) as process:
            printed = process.stdout.read() if process.stdout is not None else ""
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, arguments)
        return printed, time.monotonic() - start, usage.ru_maxrss * 1024

    def analysis(self, model: str, seed: int) -> str:
        case = CASES[model]
        folder = f"{model}-{case.samples}-{seed}.infoq"
        if not is_finished(self.work / folder):
            images = self.shared / "data" / case.images
            options = ["--preprocess", case.preprocess, "--samples", str(case.samples), "--seed", str(seed)]
            if case.classes:
                options += ["--classes", str(images / "classes.txt")]
            path = str(self.shared / "models" / f"{model}.onnx")
            options += [*case.analyze, *self.analyze_options, "-o", folder, "--json"]
            _, seconds, _ = self.run("analyze", path, "--calib", str(images / "calib"), "--effort", "full", *options)
            self.keep(f"{folder} seconds", seconds)
        return folder

    def evaluation(self, model: str, path: str) -> dict[str, Any]:
        case = CASES[model]
        images = self.shared / "data" / case.images
        options = ["--classes", str(images / "classes.txt")] if case.classes else []
        text, _, _ = self.run(
            "evaluate", path, "--data", str(images / "test"), "--preprocess", case.preprocess, *options, "--json"
        )
        found: dict[str, Any] = json.loads(text)
        return found

    def float_model(self, model: str) -> dict[str, Any]:
        if model not in self.figures:
            self.keep(model, self.evaluation(model, str(self.shared / "models" / f"{model}.onnx")))
        found: dict[str, Any] = self.figures[model]
        return found

    def compressed(self, model: str, seed: int, budget: str, *options: str) -> dict[str, Any]:
        options = (*CASES[model].budgets[budget], *CASES[model].allocate, *options)
        key = " ".join([model, str(CASES[model].samples), str(seed), *options])
        if key not in self.figures:
            folder = self.analysis(model, seed)
            given, seconds, peak = self.run("allocate", folder, *options, "-o", "model.onnx", "--json")
            found = self.evaluation(model, "model.onnx")
            weights = json.loads(given)["costs"]["weight_bytes"]
            self.keep(key, {**found, "seconds": seconds, "peak": peak, "weight_bytes": weights})
        result: dict[str, Any] = self.figures[key]
        return result

    def keep(self, key: str, value: Any) -> None:
        self.figures[key] = value
        self._path.write_text(json.dumps(self.figures, indent=1, sort_keys=True))


def main() -> None:
    """Run what is missing and write the page."""
    parser = models_parser(__doc__, CASES)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--criteria", default="", help="instead of each model's own, comma-separated")
    parser.add_argument("--analyze", default="", help="further options of analyze")
    arguments = parser.parse_args()
    bench = Bench(arguments.shared.resolve(), arguments.work.resolve(), arguments.analyze.split())
    lines = [
        "# Accuracy of low-bit models",
        "",
        f"{arguments.date}; {versions('infoq-onnx', 'onnxruntime', 'numpy')}; made by "
        f"`python benchmarks/low_bit.py SHARED WORK {' '.join(arguments.models)}"
        f" --draws {arguments.draws}{f' --analyze={arguments.analyze!r}' if arguments.analyze else ''}`.",
        "Accuracy is top-1 on the test images, which were not used for tuning. There is no training. With several",
        "draws of calibration images (`--seed 0`, `1`, …), the smallest and largest are in parentheses.",
    ]
    for model in arguments.models:
        case = CASES[model]
        criteria = arguments.criteria.split(",") if arguments.criteria else case.criteria
        reference = bench.float_model(model)
        low, high = (100 * value for value in reference["top1_interval"])
        lines += [
            "",
            f"## {model}",
            "",
            f"{case.samples} calibration images, {arguments.draws} draw{'s' if arguments.draws > 1 else ''}"
            f"{', allocate ' + ' '.join(case.allocate) if case.allocate else ''}; "
            f"{reference['images']} test images. Float: {100 * reference['top1']:.2f} % [{low:.1f}, {high:.1f}].",
            "",
            f"| budget | {' | '.join(criteria)} | weights, bytes | file, bytes | allocate, s | peak, MiB |",
            f"|---|{'---|' * len(criteria)}---|---|---|---|",
        ]
        for budget, options in case.budgets.items():
            cells, last = [], {}
            for criterion in criteria:
                if "--uniform" in options and criterion != criteria[0]:
                    cells.append("–")
                    continue
                extra = () if "--uniform" in options else ("--criterion", criterion)
                found = [bench.compressed(model, seed, budget, *extra) for seed in range(arguments.draws)]
                top1 = [100 * one["top1"] for one in found]
                spread = f" ({min(top1):.2f} – {max(top1):.2f})" if len(top1) > 1 else ""
                cells.append(f"{statistics.mean(top1):.2f}{spread}")
                last = found[0]
            lines.append(
                f"| {budget} | {' | '.join(cells)} | {last['weight_bytes']:,.0f} | {last['file_bytes']:,} "
                f"| {last['seconds']:.0f} | {last['peak'] / 2**20:.0f} |"
            )
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
