"""How well do scores from few images and few bit-widths agree with those from other images? What do they cost?

    python benchmarks/effort.py SHARED WORK cifar10_resnet20 squeezenet1_1 mobilenetv2 vit_tiny \
        -o docs/benchmarks/effort.md --date 2026-11-27

Every trial is run once on many images, and what it does to each image is kept in WORK. Each draw divides these images
into two halves. Analyses use images of the first half; their scores are compared with those from the second half, and
the bits that they choose are simulated and compared with the float network there. InfoQ's trials are run anew for each
draw.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
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
from infoq_onnx.pipeline.analyzing import find_grids, set_up, settings_of
from infoq_onnx.pipeline.looking import encode, look
from infoq_onnx.pipeline.settling import TOLERATED, regret
from infoq_onnx.preparation import load_samples, prepare
from infoq_onnx.quantize.codes import CodeTable
from infoq_onnx.reporter import Silent
from infoq_onnx.schema import Bits, LocalError, Score, tensor_of, units_of
from infoq_onnx.sensitivity.blocks import bounds
from infoq_onnx.sensitivity.criteria import get_criteria
from infoq_onnx.sensitivity.criteria.base import Context
from infoq_onnx.sensitivity.criteria.pooled import Harm, pool
from infoq_onnx.sensitivity.journal import open_journal
from infoq_onnx.sensitivity.local_error import local_errors
from infoq_onnx.sensitivity.sweep import SPARSE_BITS, sweep
from infoq_onnx.sensitivity.targets import groups, has_classmates
from infoq_onnx.sensitivity.trials import GROUPS, Problem, baseline_graph, variant_of
from infoq_onnx.simulate.quantizers.quantizable import Quantizable
from infoq_onnx.simulate.rounding import get_rounding
from infoq_onnx.simulate.running.batching import batch_size, logits_of
from infoq_onnx.simulate.running.divergence import TEMPERATURE, kl_divergence
from infoq_onnx.simulate.running.prefix import Prefix
from infoq_onnx.simulate.running.suffix import Suffix
from infoq_onnx.simulate.simulation import layer_codes, simulation

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

BITS = (2, 3, 4, 5, 6, 7)
WIDTHS = ((2, 3, 4, 5, 6, 7), (2, 3, 4, 6), (2, 3, 4))
IMAGES = (32, 64, 128, 256, 512)
BUDGETS = {
    "weights 8×": (("compression", "8"), True),
    "weights 12×": (("compression", "12"), True),
    "BitOps 5/5": (("bitops", "uniform:5/5"), False),
    "BitOps 4/4": (("bitops", "uniform:4/4"), False),
}
_DEFAULT = "kl-pooled (normal effort)"
_SAME_DRAWS = "kl-pooled (normal effort, InfoQ's draws)"
WEIGHT_BUDGETS = {f"weights {times}×": (("compression", str(times)), True) for times in (6, 8, 10, 12)}


@dataclass(frozen=True)
class Case:
    """A model's images."""

    images: str
    preprocessing: str
    rounding: int
    """Images for ranges and rounding."""
    trials: int
    """Other images: in each draw, one half is for trials, the other half for comparisons."""
    draws: int = 3
    """Number of draws; more where they are cheap."""
    weight_only: bool = False
    infoq: tuple[int, ...] = ()
    """Numbers of images with which InfoQ's criterion is tried, too."""
    infoq_draws: int = 3
    """Number of draws with InfoQ's criterion, whose trials are run anew for each."""


CASES = {
    "cifar10_resnet20": Case("cifar10", "imagenet", 1000, 1024, draws=6, infoq=(64,), infoq_draws=6),
    "mobilenetv1_025": Case("imagenet", "tf", 200, 600),
    "mobilenetv2": Case("imagenet", "tf", 200, 256, infoq=(64,)),
    "squeezenet1_1": Case("imagenet", "imagenet", 200, 256, draws=8, infoq=(64,)),
    "vit_tiny": Case("imagenet", "tf", 200, 192, weight_only=True, infoq=(64,)),
}


class Network:
    """A model with its grids, its rounded weights, and what each trial does to each image."""

    def __init__(self, shared: Path, work: Path, name: str) -> None:
        case, images = CASES[name], shared / "data" / CASES[name].images
        classes = images / "classes.txt" if (images / "classes.txt").exists() else None
        settings = settings_of(None, {"samples": case.rounding, "weight_only": case.weight_only, "effort": "full"})
        model, calib = shared / "models" / f"{name}.onnx", images / "calib"
        prepared, used, settings = set_up(model, calib, classes, case.preprocessing, settings, Silent())
        seen, grids = find_grids(look(prepared, used, settings, Silent()), used, settings, Silent())
        prepared = seen.prepared
        nothing = lambda *_: None  # noqa: E731
        layerwise = get_rounding("gptq").layerwise
        assert layerwise is not None
        codes: CodeTable = layerwise(prepared.graph, prepared.network, used, settings.bits, nothing)
        others = (calib, classes, case.preprocessing, case.trials, 0, None, used.indices)
        self.dataset = load_samples(prepare(model), *others)
        looked = look(prepare(model), self.dataset, dataclasses.replace(settings, equalize=False), Silent())
        looked = encode(looked, self.dataset, settings)
        self.labels, self.encoded = looked.labels, looked.encoded
        self.problem = Problem(
            prepared.graph,
            prepared.network,
            grids,
            self.dataset,
            self.labels,
            self.labels,
            self.encoded,
            settings,
            codes,
        )
        self.quantizable = Quantizable(prepared.graph, prepared.network, prepared.placement, grids)
        self.units = units_of(prepared.network, weight_only=case.weight_only)
        self.budgets = WEIGHT_BUDGETS if case.weight_only else BUDGETS
        self.errors: tuple[LocalError, ...] = local_errors(self.problem, BITS)
        orders = [np.random.default_rng(draw).permutation(len(self.dataset)) for draw in range(case.draws)]
        self.half = len(self.dataset) // 2
        self.tried = [order[: self.half] for order in orders]
        self.others = [np.sort(order[self.half :]) for order in orders]
        self.case, self._work, self._file = case, work, work / f"{name}.npz"
        self._compared: dict[tuple[object, ...], tuple[float, float]] = {}

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

    def scores(self, drawn: Positions, way: str, widths: tuple[int, ...]) -> Array:
        """Scores [units, bit-widths] from some images, by divergence."""
        if way == "kl":
            return self.harm[0][:, :, drawn].mean(axis=-1, dtype=np.float64)
        return self._table(self._pooled(drawn, widths))

    def _pooled(self, drawn: Positions, widths: tuple[int, ...]) -> tuple[Score, ...]:
        harm = {}
        for (row, unit), (column, bits) in itertools.product(enumerate(self.units), enumerate(BITS)):
            if bits in widths:
                values = self.harm[1, row, column, drawn].astype(np.float64)
                parts = tuple(float(values[first::GROUPS].mean()) for first in range(GROUPS))
                harm[unit, bits] = Harm(float(np.mean(parts)), parts)
        return pool(harm, self.errors)

    def settled(self, drawn: Positions) -> tuple[int, Array]:
        """Images and scores at which trials stop at normal effort."""
        for _, end in bounds(len(drawn)):
            scores = self._pooled(drawn[:end], SPARSE_BITS)
            if regret(self.problem.network, scores, self.problem.settings) <= TOLERATED:
                break
        return end, self._table(scores)

    def _table(self, scores: Sequence[Score]) -> Array:
        found = {(score.unit, score.bits): score.value for score in scores}
        return np.array([[found.get((unit, bits), 0.0) for bits in BITS] for unit in self.units])

    def by_infoq(self, drawn: Positions, way: str, widths: tuple[int, ...]) -> Array:
        """Scores [units, bit-widths] from some images, by lost information."""
        images = self.dataset.part(np.sort(drawn))
        problem = dataclasses.replace(
            self.problem,
            dataset=images,
            labels=self.labels[np.sort(drawn)],
            targets=self._targets(np.sort(drawn)),
            encoded=self.encoded[np.sort(drawn)],
        )
        journal = open_journal(self._work / f"{self._file.stem}.{images.sha256[:8]}.jsonl", images.sha256)
        result = sweep(problem, journal, lambda *_: None)
        trials = tuple(trial for trial in result.trials if trial.bits in widths)
        sources = {
            "trials": lambda: trials,
            "information": lambda: result.candidates,
            "local_errors": lambda: self.errors,
        }
        found = get_criteria()[way]
        scored = found.function(Context(found, problem.network, BITS, sources))
        return self._table(scored.scores)

    def _targets(self, drawn: Positions) -> npt.NDArray[np.int64]:
        labels = self.labels[drawn]
        if has_classmates(labels, self.problem.settings.neighbours):
            return labels
        return groups(self.float_logits[drawn])

    def chosen(self, scores: Array, budget: str) -> Solution:
        """Bits by some scores."""
        (metric, text), weight_only = self.budgets[budget]
        by_kind: dict[str, dict[str, dict[int, float]]] = {"weight": {}, "activation": {}}
        for unit, row in zip(self.units, scores.tolist(), strict=True):
            by_kind[unit.kind][unit.name] = dict(zip(BITS, row, strict=True))
        network = self.problem.network
        given = Scores(monotone(by_kind["weight"]), monotone(by_kind["activation"]))
        return solve(network, given, (parse_budget(metric, text, network),), Rules(weight_only=weight_only))

    def compared(self, solution: Solution, draw: int) -> tuple[float, float]:
        """Mean divergence from the float network, and share of equal predictions, on images not tried in a draw."""
        bits = Bits(solution.weight_bits, solution.activation_bits)
        key = (draw, *sorted(bits.weights.items()), *sorted(bits.activations.items()))
        if key not in self._compared:
            graph, others = self.problem.graph, self.others[draw]
            model = simulation(self.quantizable, bits, codes=layer_codes(self.quantizable, bits, self.problem.rounded))
            session = open_session(model, integer_kernels=False)
            logits = logits_of(session, graph, self.dataset.part(others), batch_size(graph))
            expected = self.float_logits[others]
            same = logits.argmax(axis=1) == expected.argmax(axis=1)
            self._compared[key] = float(kl_divergence(expected, logits).mean()), float(same.mean())
        return self._compared[key]

    def agreement(self, scores: Array, reference: Array) -> tuple[float, float]:
        """Spearman correlation and spread of log2 ratio with the scores from other images."""
        correlations, spreads = [], []
        for kind, column in itertools.product(("weight", "activation"), range(len(BITS))):
            rows = [index for index, unit in enumerate(self.units) if unit.kind == kind]
            one, other = scores[rows, column], reference[rows, column]
            both = (one > 0) & (other > 0)
            if both.any():
                correlations.append(stats.spearmanr(one, other).statistic)
                spreads.append(np.log2(one[both] / other[both]).std())
        return float(np.mean(correlations)), float(np.mean(spreads))

    def rows(self) -> Iterator[str]:
        """Table rows, one per way to score."""
        full = [(self.half, self.scores(tried, "kl", BITS)) for tried in self.tried]
        references = [self.harm[0][:, :, others].mean(axis=-1, dtype=np.float64) for others in self.others]
        yield self._row("kl (full effort)", BITS, full, full, references)
        settled = [self.settled(tried) for tried in self.tried]
        yield self._row("kl-pooled (normal effort)", SPARSE_BITS, settled, full, references)
        equal = [round(images * len(SPARSE_BITS) / len(BITS)) for images, _ in settled]
        raw = [(count, self.scores(tried[:count], "kl", BITS)) for count, tried in zip(equal, self.tried, strict=True)]
        yield self._row("kl (as much work)", BITS, raw, full, references)
        for images in (images for images in IMAGES if images <= self.half):
            for way, widths in (("kl", BITS), *(("kl-pooled", widths) for widths in WIDTHS)):
                drawn = [(images, self.scores(tried[:images], way, widths)) for tried in self.tried]
                yield self._row(way, widths, drawn, full, references)
        draws = self.case.infoq_draws
        if self.case.infoq and len(self.tried) > draws:
            yield self._row(_SAME_DRAWS, SPARSE_BITS, settled[:draws], full, references[:draws])
        for images in self.case.infoq:
            shuffled = [np.random.default_rng(0).permutation(others)[:images] for others in self.others[:draws]]
            references = [self.by_infoq(others, "infoq", BITS) for others in shuffled]
            for way, widths in (("infoq", BITS), ("infoq-pooled", BITS), ("infoq-pooled", (2, 3, 4))):
                drawn = [(images, self.by_infoq(tried[:images], way, widths)) for tried in self.tried[:draws]]
                yield self._row(way, widths, drawn, full, references)

    def _row(
        self,
        way: str,
        widths: tuple[int, ...],
        drawn: list[tuple[int, Array]],
        full: list[tuple[int, Array]],
        references: list[Array],
    ) -> str:
        """Compare the scores of each draw with its reference, and their bits with those of full effort in that draw."""
        images = float(np.mean([count for count, _ in drawn]))
        share = images * len(widths) / (self.half * len(BITS))
        begun = (way, f"{images:.0f}", ", ".join(map(str, widths)), f"{100 * share:.1f} %")
        if missing := sum(not scores.any() for _, scores in drawn):
            # where observers hold no information, no unit has a score, and no bits can be chosen
            told = f"no scores in {missing} of {len(drawn)} draws"
            return f"| {' | '.join((*begun, told, *['–'] * (3 + len(self.budgets))))} |"
        agreements = [self.agreement(one, other) for (_, one), other in zip(drawn, references, strict=True)]
        # the reference of a draw may lack scores, too
        rho, spread = np.nanmean(agreements, axis=0)
        cells, moved = [], []
        ratios = np.empty((len(self.budgets), len(drawn)))
        for row, budget in zip(ratios, self.budgets, strict=True):
            solutions = [self.chosen(scores, budget) for _, scores in drawn]
            values = [self.compared(solution, draw) for draw, solution in enumerate(solutions)]
            whole = [self.compared(self.chosen(full[draw][1], budget), draw)[0] for draw in range(len(drawn))]
            row[:] = np.log([kl for kl, _ in values]) - np.log(whole)
            moved += [_differing(one, other) for one, other in itertools.combinations(solutions, 2)]
            kl, same = np.mean(values, axis=0)
            cells.append(f"{kl:.4f} ± {np.std([kl for kl, _ in values], ddof=1):.4f}, {100 * same:.1f} %")
        head = (
            *begun,
            f"{rho:.2f}",
            f"{spread:.2f}",
            f"{np.exp(ratios.mean()):.2f} ± {np.exp(ratios.mean(axis=0)).std(ddof=1):.2f}",
            f"{np.mean(moved):.1f}",
        )
        line = f"| {' | '.join((*head, *cells))} |"
        print(line, flush=True)
        return line


def _differing(one: Solution, other: Solution) -> int:
    """Number of units with other bits."""
    return sum(
        mine[name] != theirs[name]
        for mine, theirs in (
            (one.weight_bits, other.weight_bits),
            (one.activation_bits, other.activation_bits),
        )
        for name in mine
    )


def figure(network: Network, path: Path) -> None:
    """Draw the harm of all trials against their local errors, one line a unit."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "effort"
    from matplotlib import pyplot

    harm = network.harm[1].mean(axis=-1, dtype=np.float64)
    local = {(error.unit, error.bits): error.value for error in network.errors}
    drawn, panels = pyplot.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    for panel, kind in zip(panels, ("weight", "activation"), strict=True):
        rows = [index for index, unit in enumerate(network.units) if unit.kind == kind]
        errors = np.array([[local[network.units[row], bits] for bits in BITS] for row in rows])
        panel.loglog(errors.T, harm[rows].T, ".-", linewidth=0.8, markersize=4)
        ends = np.array([errors.min(), errors.max()])
        middle = float(np.exp(np.log(harm[rows] / errors).mean()))
        panel.loglog(ends, middle * ends, "k--", linewidth=1)
        panel.set(title=f"{kind}s, 7 to 2 bits", xlabel="local error e(u, b)")
    panels[0].set(ylabel="divergence at temperature 2, nats")
    drawn.savefig(path, metadata={"Date": None})


def rows_of(shared: Path, work: Path, name: str) -> list[str]:
    """Table rows of a model, kept in WORK when they are complete."""
    path = work / f"{name}.rows"
    if not path.exists():
        path.write_text("\n".join(Network(shared, work, name).rows()))
    return path.read_text().splitlines()


def verdict(rows: Sequence[str], case: Case, budgets: Sequence[str]) -> str:
    """State where the default criterion is within one standard error of others at about the same work, draw by draw."""
    cells = {row[0]: row for row in reversed([row.strip("| ").split(" | ") for row in rows]) if "±" in row[-1]}
    same = _SAME_DRAWS if _SAME_DRAWS in cells else _DEFAULT
    rivals = {
        "kl (as much work)": (_DEFAULT, case.draws),
        **dict.fromkeys(("infoq", "infoq-pooled"), (same, case.infoq_draws)),
    }
    near, others = [], []
    for column, budget in enumerate(budgets, start=-len(budgets)):
        worse = []
        for name, (default, draws) in rivals.items():
            if name in cells:
                (own, own_spread), (least, spread) = (
                    [float(part) for part in cells[one][column].split(",")[0].split(" ± ")] for one in (default, name)
                )
                errors = (own - least) / (float(np.hypot(own_spread, spread)) / draws**0.5 or 1.0)
                if errors > 1:
                    worse.append(f"{budget}, where {name} has {least:.4f}, {errors:.1f} standard errors less")
        others += worse
        near += [] if worse else [budget]
    told = "At about the same work, no criterion is more than one standard error better than the default at: "
    return told + f"{', '.join(near)}." + (f" Better at {'; '.join(others)}." if others else "")


def main() -> None:
    """Measure and write the page."""
    parser = models_parser(__doc__, CASES)
    parser.add_argument("--figure", type=Path, help="draw the first model's trials")
    arguments = parser.parse_args()
    arguments.work.mkdir(exist_ok=True)
    if arguments.figure is not None:
        figure(Network(arguments.shared.resolve(), arguments.work.resolve(), arguments.models[0]), arguments.figure)
        return
    lines = [
        "# Effort: few images and few bit-widths",
        "",
        f"{arguments.date}; {versions('infoq-onnx', 'onnxruntime', 'numpy')}; made by",
        f"`python benchmarks/effort.py SHARED WORK {' '.join(arguments.models)}`.",
        "",
        "Each draw divides calibration images that ranges and rounding did not use into two halves. Scores come from "
        "images of the first half, comparisons from the second. Each row is the mean over the draws.",
        "",
        "- *work*: trials times images, as a share of full effort",
        "- *correlation*: Spearman's, within a width and kind of unit, with scores at all bit-widths from the second "
        "half: with raw KL from all images, and InfoQ's with raw InfoQ from as many images; *spread*: standard "
        "deviation over units of the log2 ratio",
        "- then, for models with the bits chosen by these scores at four budgets: mean KL divergence from the float "
        "network on the second half ± standard deviation over the draws, and share of equal predictions",
        "- *× full*: geometric mean over draws and budgets of that KL as a multiple of that at full effort in the same "
        "draw ± standard deviation over the draws",
        "- *moved*: units whose bits differ between two draws, mean over pairs of draws and budgets",
        "",
        "The larger networks have fewer images: each trial runs on all of them, at all bit-widths. Where none of a "
        "draw's observers holds information, no unit has a score by InfoQ.",
        "",
        "Weights are rounded one layer at a time. `allocate` compensates for errors of earlier layers, and so loses "
        "less.",
    ]
    for name in arguments.models:
        case = CASES[name]
        budgets = WEIGHT_BUDGETS if case.weight_only else BUDGETS
        lines += [
            "",
            f"## {name}",
            "",
            f"Ranges and rounding use {case.rounding} images; {case.draws} draws divide {case.trials} others. InfoQ's "
            f"trials are run for {case.infoq_draws} of them.",
            "",
            f"| scores | images | bit-widths | work | correlation | spread | × full | moved | {' | '.join(budgets)} |",
            "|---" * (8 + len(budgets)) + "|",
            *(rows := rows_of(arguments.shared.resolve(), arguments.work.resolve(), name)),
            "",
            verdict(rows, case, list(budgets)),
        ]
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
