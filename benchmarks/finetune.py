"""What does fine-tuning win back, on test images, in how much time and memory?

    python benchmarks/finetune.py SHARED WORK cifar10_resnet20 mobilenetv2 squeezenet1_1 vit_tiny \
        -o docs/benchmarks/finetune.md --date 2026-11-28

SHARED is the folder with the real models and images. WORK keeps analyses, models and figures: what is there is not done
again. Every figure comes from the tool's command line. Settings were chosen on held-out calibration images, never on
test images. Needs the extra finetune. Linux only.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory_use import Memory
from page import given, is_finished, models_parser, versions

LSQ = ("--mode", "lsq", "--epochs", "20")


@dataclass(frozen=True)
class Case:
    """A model with its budgets, each with the options of allocate and of finetune."""

    preprocess: str
    budgets: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
    seeds: int = 1


CASES = {
    "cifar10_resnet20": Case(
        "imagenet",
        {f"BitOps of {bits}": (("--bitops", f"uniform:{bits}"), LSQ) for bits in ("4/4", "3/3", "2/2")},
        seeds=3,
    ),
    "mobilenetv2": Case(
        "tf",
        {
            "BitOps of 4/4": (("--bitops", "uniform:4/4"), LSQ),
            "weights 10.66×": (("--compression", "10.66", "--weight-only"), LSQ),
            "weights 14×": (("--compression", "14", "--weight-only"), LSQ),
        },
    ),
    "squeezenet1_1": Case("imagenet", {"weights 10.66×": (("--compression", "10.66", "--weight-only"), LSQ)}),
    "vit_tiny": Case("tf", {"weights 8×": (("--compression", "8", "--weight-only"), LSQ)}),
}


def run(work: Path, *arguments: str) -> tuple[str, float, float]:
    """Run infoq-onnx, and return what it printed, the seconds it took, and the most MiB it had resident."""
    start = time.monotonic()
    command = [sys.executable, "-c", "from infoq_onnx.cli import main; main()", *arguments]
    process = subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, text=True)
    memory = Memory(process.pid)
    memory.start()
    printed = process.communicate()[0]
    memory.over.set()
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(arguments)}")
    return printed, time.monotonic() - start, memory.most / 2**20


def evaluated(shared: Path, work: Path, model: str, file: str) -> dict[str, Any]:
    """Evaluate a file on the test images beside the float model."""
    inputs = given(shared, work, model)
    data = str(Path(inputs["calib"]).parent / "test")
    classes = ("--classes", inputs["classes"]) if "classes" in inputs else ()
    printed, _, _ = run(work, "evaluate", file, "--data", data, *classes, "--against", inputs["model"], "--json")
    found: dict[str, Any] = json.loads(printed)
    return found


def measured(shared: Path, work: Path, model: str, budget: str, seed: int) -> dict[str, Any]:
    """Allocate, fine-tune and evaluate, or read what that gave."""
    case = CASES[model]
    to_allocate, to_finetune = case.budgets[budget]
    name = f"{model}.{budget.replace(' ', '-').replace('/', '-').replace('×', 'x')}"
    path = work / f"{name}.{seed}.result"
    if not path.exists():
        inputs = given(shared, work, model)
        classes = ("--classes", inputs["classes"]) if "classes" in inputs else ()
        analysis = f"{model}.infoq"
        if not is_finished(work / analysis):
            data = ("--calib", inputs["calib"], *classes, "--preprocess", case.preprocess)
            run(work, "analyze", inputs["model"], *data, "-o", analysis)
        if not (work / f"{name}.json").exists():
            run(work, "allocate", analysis, *to_allocate, "-o", f"{name}.onnx")
        output = f"{name}.{seed}.onnx"
        data = ("--train", inputs["calib"], *classes, "--analysis", analysis, "--seed", str(seed))
        printed, seconds, peak = run(
            work, "finetune", f"{name}.json", *data, *to_finetune, "--device", "cpu", "-o", output, "--json"
        )
        found = {
            "before": evaluated(shared, work, model, f"{name}.onnx"),
            "after": evaluated(shared, work, model, output),
            "training": json.loads(printed)["training"],
            "seconds": seconds,
            "peak": peak,
        }
        path.write_text(json.dumps(found))
    known: dict[str, Any] = json.loads(path.read_text())
    return known


def row(model: str, budget: str, found: list[dict[str, Any]]) -> str:
    """Make a table row of all seeds."""
    first = found[0]
    before, after = first["before"], [one["after"]["top1"] for one in found]
    spread = f" ± {100 * statistics.stdev(after):.1f}" if len(after) > 1 else ""
    low, high = first["after"]["top1_interval"]
    held = [
        f"{one['training']['before']['divergence']:.3f} → {one['training']['after']['divergence']:.3f}" for one in found
    ]
    cells = (
        model,
        budget,
        f"{100 * before['reference_top1']:.2f}",
        f"{100 * before['top1']:.2f}",
        f"{100 * statistics.mean(after):.2f}{spread} ({100 * low:.1f} to {100 * high:.1f})",
        str(len(found)),
        f"{100 * before['agreement']:.1f} → {100 * statistics.mean(one['after']['agreement'] for one in found):.1f}",
        held,
        f"{first['training']['images']:,}",
        f"{statistics.mean(one['seconds'] for one in found):.0f}",
        f"{max(one['peak'] for one in found):.0f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure and write the page."""
    arguments = models_parser(__doc__, CASES).parse_args()
    shared, work = arguments.shared.resolve(), arguments.work.resolve()
    work.mkdir(exist_ok=True)
    lines = [
        "# Fine-tuning",
        "",
        f"{arguments.date}; {versions('infoq-onnx', 'onnxruntime', 'torch')}; CPU; made by",
        f"`python benchmarks/finetune.py SHARED WORK {' '.join(arguments.models)}`.",
        "",
        "Top-1 on test images, in %, of the float model, of the model that `allocate` wrote, and of the same model "
        "after `finetune` on all calibration images, without labels: mean over seeds ± standard deviation (95 % "
        "interval of the first seed's, from the number of test images). Same class as float: before → after. Held out: "
        "divergence from float on calibration images that were not trained with. Seconds and peak memory are those of "
        "`finetune`, everything included. Nothing was chosen on test images.",
        "",
        "| model | budget | float | allocate | finetune | seeds | same class, % | held out | images | seconds | MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model in arguments.models:
        for budget in CASES[model].budgets:
            found = [measured(shared, work, model, budget, seed) for seed in range(CASES[model].seeds)]
            lines.append(row(model, budget, found))
            print(lines[-1], flush=True)
    lines += ["", "Options of `finetune`:", ""]
    for model in arguments.models:
        for budget, (_, options) in CASES[model].budgets.items():
            lines.append(f"- {model}, {budget}: `{' '.join(options)}`")
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
