"""Which criterion keeps more, on images that neither the analysis nor rounding has seen: InfoQ's or the output KL?

    python benchmarks/default_criterion.py SHARED WORK -o docs/benchmarks/default_criterion.md --date 2026-11-26 \
        cifar10_resnet20 mobilenetv2 mobilenetv1_025 squeezenet1_1

The default of `allocate --criterion` rests on the page that this writes. The test images are not looked at: models are
compared on other calibration images, with the float model's predictions and with labels. WORK keeps analyses and
figures; what is there is not done again.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from page import is_finished, models_parser, versions

from infoq_onnx import allocate, analyze
from infoq_onnx.analyses import read_analysis
from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.session import open_session
from infoq_onnx.preparation import PreparedModel, load_samples, prepare
from infoq_onnx.simulate.running.batching import batch_size, logits_of
from infoq_onnx.simulate.running.divergence import kl_divergence

CRITERIA = ("infoq", "kl")
BUDGETS: dict[str, dict[str, Any]] = {
    "weights 8× smaller": {"bounds": {"compression": "8"}, "weight_only": True},
    "weights 10.66× smaller": {"bounds": {"compression": "10.66"}, "weight_only": True},
    "BitOps of 5/5": {"bounds": {"bitops": "uniform:5/5"}},
    "BitOps of 4/4": {"bounds": {"bitops": "uniform:4/4"}},
}
COMPARED = 500
"""Images that models are compared on."""


@dataclass(frozen=True)
class Case:
    """A model's images and the settings of its analysis."""

    images: str
    preprocessing: str
    samples: int
    projections: int = 128


CASES = {
    "cifar10_resnet20": Case("cifar10", "imagenet", 1000),
    "mobilenetv2": Case("imagenet", "tf", 200, 32),
    "mobilenetv1_025": Case("imagenet", "tf", 200, 32),
    "squeezenet1_1": Case("imagenet", "imagenet", 200, 32),
}


def analysis_of(shared: Path, work: Path, model: str) -> Path:
    """Return a model's analysis, made where it is missing."""
    case, folder = CASES[model], work / f"{model}.infoq"
    if not is_finished(folder):
        images = shared / "data" / case.images
        classes = images / "classes.txt"
        analyze(
            shared / "models" / f"{model}.onnx",
            images / "calib",
            classes=classes if classes.exists() else None,
            preprocessing=case.preprocessing,
            samples=case.samples,
            projections=case.projections,
            effort="full",
            output=folder,
        )
    return folder


class Bench:
    """Analyses and figures in a folder."""

    def __init__(self, shared: Path, work: Path) -> None:
        self.shared, self.work = shared, work
        self._path = work / "default_criterion.json"
        self.figures: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def keep(self, key: str, value: Any) -> None:
        self.figures[key] = value
        self._path.write_text(json.dumps(self.figures, indent=1, sort_keys=True))

    def others(self, prepared: PreparedModel, model: str) -> tuple[Dataset, npt.NDArray[np.bool_]]:
        """All calibration images up to some, and which of them the analysis has not seen."""
        case, images = CASES[model], self.shared / "data" / CASES[model].images
        classes = images / "classes.txt" if (images / "classes.txt").exists() else None
        wanted = (images / "calib", classes, case.preprocessing)
        seen = load_samples(prepared, *wanted, case.samples, 0)
        # another seed draws other images; those that both draws have are left out
        drawn = load_samples(prepared, *wanted, min(case.samples + COMPARED, 1000), 1)
        fresh = ~np.isin(drawn.indices, seen.indices)
        return drawn, fresh & (np.cumsum(fresh) <= COMPARED)

    def measure(self, model: str) -> None:
        """Fill in what is missing of a model."""
        keys = {(budget, criterion): f"{model} {budget} {criterion}" for budget in BUDGETS for criterion in CRITERIA}
        if all(key in self.figures for key in keys.values()):
            return
        folder = analysis_of(self.shared, self.work, model)
        prepared = prepare(self.shared / "models" / f"{model}.onnx")
        dataset, fresh = self.others(prepared, model)
        size = batch_size(prepared.graph)
        expected = logits_of(open_session(prepared.graph.model), prepared.graph, dataset, size)[fresh]
        labels = None if dataset.labels is None else dataset.labels[fresh]
        for (budget, criterion), key in keys.items():
            if key in self.figures:
                continue
            with tempfile.TemporaryDirectory() as where:
                path = Path(where) / "model.onnx"
                allocate(folder, criterion=criterion, output=path, **BUDGETS[budget])
                logits = logits_of(open_session(path), prepared.graph, dataset, size)[fresh]
            divergence = kl_divergence(expected, logits)
            same = logits.argmax(axis=1) == expected.argmax(axis=1)
            right = None if labels is None else logits.argmax(axis=1) == labels
            self.keep(
                key,
                {
                    "images": len(logits),
                    "kl": float(divergence.mean()),
                    "same": float(same.mean()),
                    "top1": None if right is None else float(right.mean()),
                    "float": None if labels is None else float(np.mean(expected.argmax(axis=1) == labels)),
                    "targets": read_analysis(folder).calibration.targets,
                },
            )
            print(key, self.figures[key], flush=True)


def main() -> None:
    """Measure what is missing and write the page."""
    arguments = models_parser(__doc__, CASES).parse_args()
    bench = Bench(arguments.shared.resolve(), arguments.work.resolve())
    lines = [
        "# The default criterion",
        "",
        f"{arguments.date}; {versions('infoq-onnx', 'onnxruntime', 'numpy')}; made by",
        f"`python benchmarks/default_criterion.py SHARED WORK {' '.join(arguments.models)}`.",
        "`allocate` runs with its defaults and seed 0. Models are compared on calibration images that neither the "
        "analysis nor",
        "rounding has seen. Each cell: mean KL divergence from the float model, share of equal predictions, top-1 by "
        "labels.",
    ]
    for model in arguments.models:
        bench.measure(model)
        case = CASES[model]
        any_of = bench.figures[f"{model} {next(iter(BUDGETS))} {CRITERIA[0]}"]
        y = {"true": "the class", "groups": "the image's group, because few images share a class"}.get(
            any_of["targets"], ""
        )
        lines += [
            "",
            f"## {model}",
            "",
            f"{case.samples} images analysed, {case.projections} projections; Y is {y}.",
            f"Compared on {any_of['images']} other images. The float model classifies {100 * any_of['float']:.1f} % of "
            "them correctly.",
            "",
            f"| budget | {' | '.join(CRITERIA)} |",
            f"|---|{'---|' * len(CRITERIA)}",
        ]
        for budget in BUDGETS:
            found = [bench.figures[f"{model} {budget} {criterion}"] for criterion in CRITERIA]
            cells = [f"{one['kl']:.4f}, {100 * one['same']:.1f} %, {100 * one['top1']:.1f} %" for one in found]
            lines.append(f"| {budget} | {' | '.join(cells)} |")
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
