"""How well do scores from few images and few bit-widths agree with those from other images? What do they cost?

    python benchmarks/effort.py SHARED WORK cifar10_resnet20 mobilenetv1_025 \
        -o docs/benchmarks/effort.md --date 2026-11-27

Every trial is run once on many images, and what it does to each image is kept in WORK. Analyses with few images are
then drawn from these, five of each kind. Their scores are compared with the mean divergence on all other images, and
the bits that they choose are simulated and compared with the float network on all other images. The images that ranges
and rounding use are not among them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from page import models_parser, versions
from scipy import stats

from infoq_onnx.allocation.bounds import parse_budget
from infoq_onnx.allocation.monotone import monotone
from infoq_onnx.allocation.program import Rules, Scores
from infoq_onnx.allocation.solve import Solution, solve
from infoq_onnx.graph.session import open_session
from infoq_onnx.pipeline.analyzing import _find_grids, set_up, settings_of
from infoq_onnx.pipeline.looking import look
from infoq_onnx.preparation import load_samples, prepare
from infoq_onnx.quantize.codes import CodeTable
from infoq_onnx.reporter import Silent
from infoq_onnx.schema import Bits, LocalError, tensor_of, units_of
from infoq_onnx.sensitivity.criteria.pooled import Harm, pool
from infoq_onnx.sensitivity.local_error import local_errors
from infoq_onnx.sensitivity.trials import GROUPS, Problem, baseline_graph, variant_of
from infoq_onnx.simulate.quantizers.quantizable import Quantizable
from infoq_onnx.simulate.rounding import get_rounding
from infoq_onnx.simulate.running.batching import batch_size, logits_of
from infoq_onnx.simulate.running.divergence import TEMPERATURE, kl_divergence
from infoq_onnx.simulate.running.prefix import Prefix
from infoq_onnx.simulate.running.suffix import Suffix
from infoq_onnx.simulate.simulation import layer_codes, simulation

Array = npt.NDArray[np.float64]

BITS = (2, 3, 4, 5, 6, 7)
SPARSE = (2, 3, 4, 6)
IMAGES = (32, 64, 128, 256)
DRAWS = 5
BUDGETS = {
    "weights 8×": (("compression", "8"), True),
    "weights 12×": (("compression", "12"), True),
    "BitOps 5/5": (("bitops", "uniform:5/5"), False),
    "BitOps 4/4": (("bitops", "uniform:4/4"), False),
}


@dataclass(frozen=True)
class Case:
    """A model's images."""

    images: str
    preprocessing: str
    rounding: int
    """Images for ranges and rounding."""
    trials: int
    """Other images, for trials and comparisons."""


CASES = {
    "cifar10_resnet20": Case("cifar10", "imagenet", 1000, 1536),
    "mobilenetv1_025": Case("imagenet", "tf", 200, 800),
    "mobilenetv2": Case("imagenet", "tf", 200, 800),
    "squeezenet1_1": Case("imagenet", "imagenet", 200, 800),
}


class Network:
    """A model with its grids, its rounded weights, and what each trial does to each image."""

    def __init__(self, shared: Path, work: Path, name: str) -> None:
        case, images = CASES[name], shared / "data" / CASES[name].images
        classes = images / "classes.txt" if (images / "classes.txt").exists() else None
        settings = settings_of(None, {"samples": case.rounding})
        model, calib = shared / "models" / f"{name}.onnx", images / "calib"
        prepared, used, settings = set_up(model, calib, classes, case.preprocessing, settings, Silent())
        seen, grids = _find_grids(look(prepared, used, settings, Silent()), used, settings, Silent())
        prepared = seen.prepared
        nothing = lambda *_: None  # noqa: E731
        layerwise = get_rounding("gptq").layerwise
        assert layerwise is not None
        codes: CodeTable = layerwise(prepared.graph, prepared.network, used, settings.bits, nothing)
        others = (calib, classes, case.preprocessing, case.trials, 0, None, used.indices)
        self.dataset = load_samples(prepare(model), *others)
        labels = np.zeros(len(self.dataset), np.int64)
        encoded = np.zeros((len(labels), 1))
        self.problem = Problem(
            prepared.graph, prepared.network, grids, self.dataset, labels, labels, encoded, settings, codes
        )
        self.quantizable = Quantizable(prepared.graph, prepared.network, prepared.placement, grids)
        self.units = units_of(prepared.network)
        self.errors: tuple[LocalError, ...] = local_errors(self.problem, BITS)
        self._file = work / f"{name}.npz"
        self._simulated: dict[tuple[tuple[str, int], ...], tuple[Array, npt.NDArray[np.bool_]]] = {}

    @cached_property
    def float_logits(self) -> npt.NDArray[np.float32]:
        graph = self.problem.graph
        return logits_of(open_session(graph.model), graph, self.dataset, batch_size(graph))

    @cached_property
    def harm(self) -> npt.NDArray[np.float32]:
        """Divergence of every trial [2 temperatures, units, bit-widths, images]."""
        if not self._file.exists():
            np.savez(self._file, harm=self._measured())
        with np.load(self._file) as arrays:
            return np.asarray(arrays["harm"])

    def _measured(self) -> npt.NDArray[np.float32]:
        problem = self.problem
        graph, network = baseline_graph(problem), problem.network
        expected = logits_of(open_session(graph.model), graph, self.dataset, batch_size(graph))
        prefix = Prefix(graph, network, self.dataset)
        found = np.empty((2, len(self.units), len(BITS), len(self.dataset)), np.float32)
        ordered = sorted(self.units, key=lambda unit: prefix.position(tensor_of(network, unit)))
        for done, unit in enumerate(ordered):
            tensor, variants = tensor_of(network, unit), [variant_of(problem, unit, b) for b in BITS]
            fed = [name for name in variants[0] if name in graph.initializers]
            suffix = Suffix(graph, network, tensor, [graph.output], fed)
            batches = prefix.batches(tensor, suffix.kept)
            parts = [suffix.run(count, kept, variants) for count, kept in batches]
            for index in range(len(BITS)):
                logits = np.concatenate([part[index][0].reshape(len(part[index][0]), -1) for part in parts])
                for row, temperature in enumerate((1.0, TEMPERATURE)):
                    found[row, self.units.index(unit), index] = kl_divergence(expected, logits, temperature)
            print(f"{done + 1} of {len(ordered)} units", flush=True)
        return found

    def scores(self, drawn: npt.NDArray[np.int64], way: str, widths: tuple[int, ...]) -> Array:
        """Scores [units, bit-widths] from some images."""
        if way == "raw":
            return self.harm[0][:, :, drawn].mean(axis=-1, dtype=np.float64)
        harm = {}
        for (row, unit), (column, bits) in itertools.product(enumerate(self.units), enumerate(BITS)):
            if bits in widths:
                values = self.harm[1, row, column, drawn].astype(np.float64)
                parts = tuple(float(values[first::GROUPS].mean()) for first in range(GROUPS))
                harm[unit, bits] = Harm(float(np.mean(parts)), parts)
        found = {(score.unit, score.bits): score.value for score in pool(harm, self.errors)}
        return np.array([[found[unit, bits] for bits in BITS] for unit in self.units])

    def chosen(self, scores: Array, budget: str) -> Solution:
        """Bits by some scores."""
        (metric, text), weight_only = BUDGETS[budget]
        by_kind: dict[str, dict[str, dict[int, float]]] = {"weight": {}, "activation": {}}
        for unit, row in zip(self.units, scores.tolist(), strict=True):
            by_kind[unit.kind][unit.name] = dict(zip(BITS, row, strict=True))
        network = self.problem.network
        given = Scores(monotone(by_kind["weight"]), monotone(by_kind["activation"]))
        return solve(network, given, (parse_budget(metric, text, network),), Rules(weight_only=weight_only))

    def simulated(self, solution: Solution) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Divergence from the float network, and whether the prediction is the same, for each image."""
        bits = Bits(solution.weight_bits, solution.activation_bits)
        key = (*sorted(bits.weights.items()), *sorted(bits.activations.items()))
        if key not in self._simulated:
            graph = self.problem.graph
            model = simulation(self.quantizable, bits, codes=layer_codes(self.quantizable, bits, self.problem.rounded))
            logits = logits_of(open_session(model, integer_kernels=False), graph, self.dataset, batch_size(graph))
            same = logits.argmax(axis=1) == self.float_logits.argmax(axis=1)
            self._simulated[key] = (kl_divergence(self.float_logits, logits), same)
        return self._simulated[key]

    def agreement(self, scores: Array, others: npt.NDArray[np.int64]) -> tuple[float, float]:
        """Spearman correlation and spread of log2 ratio with the divergence on other images."""
        reference = self.harm[0][:, :, others].mean(axis=-1, dtype=np.float64)
        correlations, spreads = [], []
        for kind, column in itertools.product(("weight", "activation"), range(len(BITS))):
            rows = [index for index, unit in enumerate(self.units) if unit.kind == kind]
            correlations.append(stats.spearmanr(scores[rows, column], reference[rows, column]).statistic)
            spreads.append(np.log2(scores[rows, column] / reference[rows, column]).std())
        return float(np.mean(correlations)), float(np.mean(spreads))

    def rows(self) -> list[str]:
        """Table rows, one per way to score."""
        count, half = len(self.dataset), len(self.dataset) // 2
        found = []
        ways = [
            (n, way, widths) for n in IMAGES for way, widths in (("raw", BITS), ("pooled", BITS), ("pooled", SPARSE))
        ]
        for images, way, widths in [*ways, (half, "raw", BITS)]:
            agreements, harms = [], {budget: [] for budget in BUDGETS}
            for draw in range(DRAWS):
                order = np.random.default_rng(draw).permutation(count)
                drawn, others = np.sort(order[:images]), np.sort(order[half:])
                scores = self.scores(drawn, way, widths)
                agreements.append(self.agreement(scores, others))
                for budget, values in harms.items():
                    kl, same = self.simulated(self.chosen(scores, budget))
                    values.append((float(kl[others].mean()), float(same[others].mean())))
            rho, spread = np.mean(agreements, axis=0)
            cells = [
                f"{np.mean([kl for kl, _ in values]):.4f} ± {np.std([kl for kl, _ in values], ddof=1):.4f}, "
                f"{100 * np.mean([same for _, same in values]):.1f} %"
                for values in harms.values()
            ]
            share = images * len(widths) / (half * len(BITS))
            head = (
                way,
                str(images),
                ", ".join(map(str, widths)),
                f"{100 * share:.1f} %",
                f"{rho:.2f}",
                f"{spread:.2f}",
            )
            found.append(f"| {' | '.join((*head, *cells))} |")
            print(found[-1], flush=True)
        return found


def main() -> None:
    """Measure and write the page."""
    arguments = models_parser(__doc__, CASES).parse_args()
    arguments.work.mkdir(exist_ok=True)
    lines = [
        "# Effort: few images and few bit-widths",
        "",
        f"{arguments.date}; {versions('infoq-onnx', 'onnxruntime', 'numpy')}; made by",
        f"`python benchmarks/effort.py SHARED WORK {' '.join(arguments.models)}`.",
        "",
        "*raw* is the mean KL divergence of each trial (`kl`), *pooled* is `kl-pooled`. *Work*: trials "
        "times images, as a share of the last row. *Correlation*: Spearman's, within a width and kind of unit, with "
        "the divergence on other images. *Spread*: standard deviation over units of the log2 ratio to it. Then, for "
        "models with these bits: mean KL divergence from the float network on other images ± standard deviation over 5 "
        "draws of images, and share of equal predictions. Weights are rounded one layer at a time. `allocate` "
        "compensates for errors of earlier layers, and so loses less.",
    ]
    for name in arguments.models:
        network = Network(arguments.shared.resolve(), arguments.work.resolve(), name)
        lines += [
            "",
            f"## {name}",
            "",
            f"Ranges and rounding use {CASES[name].rounding} images; {CASES[name].trials} others.",
        ]
        lines += ["", f"| scores | images | bit-widths | work | correlation | spread | {' | '.join(BUDGETS)} |"]
        lines += ["|---" * (6 + len(BUDGETS)) + "|", *network.rows()]
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
