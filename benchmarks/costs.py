"""How the cost of a sweep grows with images, bit-widths, projections, observers and layers.

    python benchmarks/costs.py SHARED -o docs/benchmarks/costs.md --date 2026-11-22

Each is varied alone; seconds are those of the trials in one process, and the slope is that of log(seconds) against
log(amount). Layers are those of a chain of equal convolutions, the others are varied on cifar10_resnet20. Observers are
varied by the threshold, and counted are the widths that only observers see. Needs matplotlib (extra `docs`); what is
timed is not run beside anything else.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import onnx
from clock import Clock
from page import page_parser, versions

from infoq_onnx import analyze, read_analysis
from infoq_onnx.schema import Analysis

BASE: dict[str, Any] = {"samples": 250, "bits": (4, 6, 8), "projections": 64}
IMAGES = (125, 250, 500, 1000)
WIDTHS = ((6, 8), (4, 6, 8), (3, 4, 6, 8), (2, 3, 4, 5, 6, 8))
PROJECTIONS = (16, 32, 64, 128)
THRESHOLDS = (1.0, 0.8, 0.6, -1.0)
LAYERS = (4, 8, 16, 32)
FIGURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "costs.svg"


@dataclass
class Counted(Clock):
    """One that notes, too, when how many trials were done."""

    seen: list[tuple[int, float]] = field(default_factory=list)

    def progress(self, stage: str, detail: str, done: int, total: int, share: float | None = None) -> None:
        super().progress(stage, detail, done, total, share)
        if stage == "trials":
            self.seen.append((done, self.last[stage]))

    def seconds_behind(self, count: int) -> float:
        """From when so many trials were done until all were."""
        return self.seen[-1][1] - next(when for done, when in self.seen if done >= count)


def seen_by(found: Analysis) -> int:
    """Count the candidates that see the widths above those that all see."""
    told = [delta for trial in found.trials if trial.bits > 4 for delta in trial.deltas.items()]
    return len({tensor for tensor, _ in told})


class Bench:
    """Analyses of one model, into a folder that is thrown away."""

    def __init__(self, shared: Path, folder: Path) -> None:
        self.shared, self.folder, self.count = shared, folder, 0

    def run(self, model: Path, calib: Path, preprocessing: str | None, **options: Any) -> tuple[Analysis, Counted]:
        self.count += 1
        clock = Counted()
        chosen = {**BASE, "preprocessing": preprocessing, "workers": 1, "effort": "full", **options}
        found = analyze(model, calib, output=self.folder / f"{self.count}.infoq", reporter=clock, **chosen)
        return read_analysis(found), clock

    def cifar10(self, **options: Any) -> tuple[Analysis, Counted]:
        calib = self.shared / "data" / "cifar10" / "calib"
        return self.run(self.shared / "models" / "cifar10_resnet20.onnx", calib, "imagenet", **options)

    def chain(self, layers: int) -> Counted:
        from tests.networks import Builder

        b = Builder()
        y = b.relu(b.conv("x", "first", 3, 32), "first_relu")
        for index in range(layers - 2):
            y = b.relu(b.conv(y, f"conv{index}", 32, 32), f"relu{index}")
        model, calib = self.folder / f"chain{layers}.onnx", self.folder / "noise.npy"
        onnx.save(b.model(b.classifier(y, 32, 10), (3, 32, 32), (10,)), model)
        np.save(calib, np.random.default_rng(0).standard_normal((BASE["samples"], 3, 32, 32), dtype=np.float32))
        return self.run(model, calib, None)[1]

    def measured(self) -> Iterator[tuple[str, list[int], list[float]]]:
        """What is varied, the amounts, and the seconds of each."""
        self.cifar10(samples=64)  # compiles
        yield "images", list(IMAGES), [self.cifar10(samples=count)[1].seconds("trials") for count in IMAGES]
        yield "widths", [len(b) - 1 for b in WIDTHS], [self.cifar10(bits=b)[1].seconds("trials") for b in WIDTHS]
        times = [self.cifar10(projections=count)[1].seconds("trials") for count in PROJECTIONS]
        yield "projections", list(PROJECTIONS), times
        observers: dict[int, float] = {}
        for threshold in THRESHOLDS:
            with patch("infoq_onnx.sensitivity.sweep.THRESHOLD", threshold):
                found, clock = self.cifar10(bits=(4, 5, 6, 7, 8))
            # the first width of every unit is seen by all candidates
            first = len(found.trials) // 4
            observers[seen_by(found)] = clock.seconds_behind(first)
        yield "observers", sorted(observers), [observers[count] for count in sorted(observers)]
        yield "layers", list(LAYERS), [self.chain(layers).seconds("trials") for layers in LAYERS]


def main() -> None:
    """Measure, draw and write the page."""
    parser = page_parser(__doc__)
    parser.add_argument("shared", type=Path)
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    lines = [
        "# How the cost of a sweep grows",
        "",
        f"{arguments.date}; {versions('infoq-onnx', 'onnxruntime', 'numpy', 'numba')}; made by",
        "`python benchmarks/costs.py SHARED`. Its docstring describes what is varied and how. Times are seconds of the",
        f"trials in one process. Amounts that are not varied: {BASE['samples']} images, {len(BASE['bits']) - 1} "
        f"widths, {BASE['projections']} projections.",
        "",
        "| varied | slope | amount: seconds |",
        "|---|---|---|",
    ]
    # the same data must give the same file
    mpl.rcParams.update({"svg.hashsalt": "infoq-onnx", "svg.fonttype": "none", "font.size": 8})
    figure, axes = plt.subplots(1, 5, figsize=(12, 2.6), layout="constrained")
    with tempfile.TemporaryDirectory() as folder:
        for axis, (what, amounts, times) in zip(axes, Bench(arguments.shared, Path(folder)).measured(), strict=True):
            slope = float(np.polyfit(np.log(amounts), np.log(times), 1)[0])
            cells = ", ".join(f"{amount}: {spent:.1f}" for amount, spent in zip(amounts, times, strict=True))
            lines.append(f"| {what} | {slope:.2f} | {cells} |")
            print(lines[-1], flush=True)
            axis.loglog(amounts, times, "o-")
            axis.set(xlabel=what, title=f"slope {slope:.2f}")
            axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds of the trials")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})
    lines += ["", "![cost against each varied amount](../figures/costs.svg)"]
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
