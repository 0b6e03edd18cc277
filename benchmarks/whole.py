"""Whole analyses of 1000 images: how long they take, where the time goes, and what memory they have at most.

    python benchmarks/whole.py SHARED WORK -o docs/benchmarks/whole.md --date 2026-11-22 resnet18 mobilenetv2

ResNet18 has random weights, as no trained one lies in SHARED; labels would mean nothing to it, so it gets none, and
its own predictions stand in for them. mobilenetv2 is bound to 2 GiB, and tries 4-bit weights only. WORK keeps what was
measured, so that models can be done one by one; an analysis that was interrupted is made anew. What is timed is not run
beside anything else. Linux only.
"""

from __future__ import annotations

import collections
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import GeneratorType
from typing import Any

from clock import Clock
from memory_use import Memory
from page import given, models_parser, versions

import infoq_onnx.sensitivity.sweep as sweeping
from infoq_onnx import analyze
from infoq_onnx.analyses import read_analyzed
from infoq_onnx.graph.session import processors
from infoq_onnx.preparation import prepare_again
from infoq_onnx.schema import Analysis, Trial, tensor_of, units_of
from infoq_onnx.sensitivity.trials import Baseline, Problem, SmiEstimator, Task, runner
from infoq_onnx.simulate.running.prefix import Prefix
from infoq_onnx.simulate.running.spill import Spill
from infoq_onnx.simulate.running.suffix import Suffix

SAMPLES = 1000
CASES: dict[str, dict[str, Any]] = {
    "resnet18": {"preprocessing": "imagenet"},
    "mobilenetv2": {"preprocessing": "tf", "bits": (4, 8), "weight_only": True, "memory": "2GiB"},
}
TIMED = (
    (Suffix, "__init__", "inference"),
    (Suffix, "run", "inference"),
    (Prefix, "batches", "inference"),
    (SmiEstimator, "xl", "estimates"),
    (SmiEstimator, "ly", "estimates"),
)


def timed_runner(folder: Path, state: tuple[Problem, Baseline, int, Spill | None]) -> Callable[[Task], list[Trial]]:
    """Make what `runner` makes, of which each process writes down what its seconds go to."""
    spent: dict[str, float] = collections.defaultdict(float)

    def timed(work: Callable[..., Any], what: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                result = work(*arguments, **named)
            finally:
                spent[what] += time.perf_counter() - start
            return stepped(result) if isinstance(result, GeneratorType) else result

        def stepped(steps: GeneratorType[Any, Any, Any]) -> Iterator[Any]:
            advance = timed(functools.partial(next, steps, None), what)
            while (step := advance()) is not None:
                yield step

        return call

    for owner, name, what in TIMED:
        setattr(owner, name, timed(getattr(owner, name), what))
    run = timed(runner(state), "all")

    def noted(task: Task) -> list[Trial]:
        trials: list[Trial] = run(task)
        (folder / f"{os.getpid()}.json").write_text(json.dumps(spent))
        return trials

    return noted


def measured(shared: Path, work: Path, model: str) -> dict[str, Any]:
    """Analyze a model, or read what that gave."""
    path, folder, clocks = work / f"{model}.json", work / f"{model}.infoq", work / f"{model}.clocks"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    for left in (folder, clocks):
        shutil.rmtree(left, ignore_errors=True)
    clocks.mkdir()
    sweeping.runner = functools.partial(timed_runner, clocks)
    clock, memory = Clock(), Memory()
    memory.start()
    start = time.monotonic()
    chosen = {**CASES[model], "samples": SAMPLES, "effort": "full"}
    analyze(**given(shared, work, model), **chosen, workers="auto", output=folder, reporter=clock)
    seconds = time.monotonic() - start
    memory.over.set()
    spent: dict[str, float] = collections.defaultdict(float)
    processes = [json.loads(file.read_text()) for file in clocks.iterdir()]
    for process in processes:
        for what, amount in process.items():
            spent[what] += amount
    begun = clock.begun
    result = {
        "seconds": seconds,
        "read": begun["ranges"] - start,
        "ranges": begun["rounding"] - begun["ranges"],
        "rounding": begun["trials"] - begun["rounding"],
        "trials": clock.seconds("trials"),
        "spent": spent,
        "processes": len(processes),
        "peak": memory.most,
    }
    path.write_text(json.dumps(result, indent=1))
    return result


def passes(found: Analysis) -> float:
    """Whole passes over the images that the trials are worth."""
    prepared = prepare_again(found, None)
    tried = units_of(found.network, weight_only=found.settings.weight_only)
    total = sum(layer.macs for layer in found.network.layers)
    stages = [tuple(bits) for bits in sweeping.stages(found.settings)]
    behind = 0.0
    for unit in tried:
        reached = prepared.graph.descendants([tensor_of(found.network, unit)])
        macs = sum(layer.macs for layer in found.network.layers if layer.output in reached)
        behind += sum(map(len, stages)) * macs / total
    return behind


def row(shared: Path, work: Path, model: str) -> str:
    """One row of the table."""
    got = measured(shared, work, model)
    analyzed = read_analyzed(work / f"{model}.infoq")
    found, observers = analyzed.analysis, analyzed.scores["infoq"].observers
    kept = sum(observer.selected_xl or observer.selected_ly for observer in observers)
    # what the processes did at the same time took the time once
    share = {what: got["trials"] * amount / got["spent"]["all"] for what, amount in got["spent"].items()}
    inference, estimates = share["inference"], share["estimates"]
    rest = got["trials"] - inference - estimates
    times = (got["read"], got["ranges"], got["rounding"], inference, estimates, rest, got["seconds"])
    cells = [
        model,
        CASES[model].get("memory", "–"),
        ", ".join(map(str, found.settings.bits)),
        f"{found.settings.samples}",
        f"{len(found.trials)}",
        f"{passes(found):.0f}",
        f"{kept} of {len(observers)}",
        *(f"{spent:,.0f}" for spent in times),
        f"{100 * inference / got['seconds']:.0f}, {100 * estimates / got['seconds']:.0f} %",
        f"{got['peak'] / 2**20:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run what is missing and write the page."""
    parser = models_parser(__doc__, CASES)
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    arguments.work.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Whole analyses",
        "",
        f"{arguments.date}; {versions('infoq-onnx', 'onnxruntime', 'numpy', 'numba')}; {processors()} processors;",
        f"made by `python benchmarks/whole.py SHARED WORK {' '.join(arguments.models)}`.",
        "`analyze` runs with `--effort full`: weights and activations, 128 projections, and one process per processor",
        "if `--memory` has room for them. ResNet18 has 224×224 inputs and random weights.",
        "",
        "Passes: the downstream computations of all trials, in whole passes over all images. Reading: images and the "
        "float",
        "pass. Rounding: every width, and the baseline. Inference, estimates and rest make up the trials. Peak: the "
        "most",
        "memory that all processes together had resident.",
        "",
        "| model | memory | bits | images | trials | passes | observers kept | reading, s | ranges, s | rounding, s "
        "| inference, s | estimates, s | rest, s | whole, s | inference, estimates | peak, MiB |",
        f"|{'---|' * 16}",
        *(row(arguments.shared.resolve(), arguments.work.resolve(), model) for model in arguments.models),
    ]
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
