"""What a sweep that leaves trials out would save, and what it would change: why there is no `--adaptive`.

    python benchmarks/adaptive.py A.infoq B.infoq -o docs/benchmarks/adaptive.md --date 2026-11-22

Two ways to leave trials out are played through on finished analyses, at eight budgets each.

Predicted: the widths of a unit are tried from the lowest on. When a trial's KL divergence is below a threshold, its
higher widths are not tried, and each further bit is taken to leave a quarter of the score. How many units get other
bits than by all trials?

Needed: at a budget a bit has a price, the most that a further one would have saved. Where a whole score is less than
the price of one more bit, no higher width can be chosen, whatever its score. Those trials, and only those, could be
left out by one who knew the price before the sweep. How many are left?
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from pathlib import Path

from page import page_parser, versions

from infoq_onnx.allocation.bounds import parse_budget
from infoq_onnx.allocation.decide import decide
from infoq_onnx.allocation.monotone import monotone
from infoq_onnx.analyses import read_analyzed
from infoq_onnx.schema import BASELINE_BITS, Allocation, AllocationSettings, Analyzed, Unit

THRESHOLDS = (1e-3, 1e-4, 1e-5)
LEFT_BY_A_BIT = 0.25
WEIGHTS = tuple(("compression", ratio) for ratio in ("16", "14", "12", "10.66", "9", "8", "7", "6.4"))
BOTH = tuple(("bitops", f"uniform:{bits}") for bits in ("2/3", "3/3", "3/4", "4/4", "4/5", "5/5", "5/6", "6/6"))


def allocation(found: Analyzed, criterion: str, budget: tuple[str, str]) -> Allocation:
    weight_only = budget in WEIGHTS
    bound = parse_budget(budget[0], budget[1], found.analysis.network)  # type: ignore[arg-type]
    settings = AllocationSettings(weight_only=weight_only, criterion=criterion)
    return decide(found.analysis, found.scores[criterion].scores, settings, (bound,))


def bits_of(decided: Allocation) -> dict[Unit, int]:
    weights = {Unit("weight", name): bits for name, bits in decided.weight_bits.items()}
    return weights | {Unit("activation", name): bits for name, bits in decided.activation_bits.items()}


def predicted(found: Analyzed, criterion: str, threshold: float) -> tuple[Analyzed, float]:
    """The analysis without the trials behind the first that is below the threshold; the share of those done."""
    last: dict[Unit, int] = {}
    trials, table = found.analysis.trials, found.scores[criterion]
    for trial in sorted(trials, key=lambda trial: trial.bits):
        if trial.kl < threshold and trial.unit not in last:
            last[trial.unit] = trial.bits
    done = sum(trial.bits <= last.get(trial.unit, BASELINE_BITS) for trial in trials)
    value = {(score.unit, score.bits): score.value for score in table.scores}
    scores = []
    for score in table.scores:
        bits = last.get(score.unit, BASELINE_BITS)
        if bits < score.bits < BASELINE_BITS and (score.unit, bits) in value:
            told = value[score.unit, bits] * LEFT_BY_A_BIT ** (score.bits - bits)
            scores.append(dataclasses.replace(score, value=told))
        else:
            scores.append(score)
    changed = dataclasses.replace(table, scores=tuple(scores))
    return Analyzed(found.analysis, {criterion: changed}), done / len(trials)


def needed(found: Analyzed, criterion: str, budget: tuple[str, str]) -> float:
    """The share of the weights' trials that a budget on weights needs."""
    size = {layer.name: layer.parameters for layer in found.analysis.network.layers}
    chosen = allocation(found, criterion, budget).weight_bits
    scores: dict[str, dict[int, float]] = defaultdict(dict)
    for score in found.scores[criterion].scores:
        if score.unit.kind == "weight":
            scores[score.unit.name][score.bits] = score.value
    left = monotone(scores)
    price = max(
        (by[chosen[unit]] - by[bits]) / ((bits - chosen[unit]) * size[unit])
        for unit, by in left.items()
        for bits in by
        if bits > chosen[unit]
    )
    tried = [bits for by in left.values() for bits in by if bits < BASELINE_BITS]
    enough = {unit: next(bits for bits in by if by[bits] / size[unit] <= price) for unit, by in left.items()}
    wanted = [bits for unit, by in left.items() for bits in by if bits <= enough[unit] and bits < BASELINE_BITS]
    return len(wanted) / len(tried)


def section(folder: Path) -> list[str]:
    """Both tables of one analysis."""
    found = read_analyzed(folder)
    lines = ["", f"## {folder.stem}", ""]
    for budgets in (WEIGHTS,) if found.analysis.settings.weight_only else (WEIGHTS, BOTH):
        names = [text.removeprefix("uniform:") for _, text in budgets]
        metric = "compression" if budgets is WEIGHTS else "BitOps of"
        lines += [
            f"Predicted, {metric}: units with other bits, and by how many at most.",
            "",
            f"| criterion | KL below | trials done | {' | '.join(names)} |",
            f"|---|---|---|{'---|' * len(names)}",
        ]
        for criterion in ("kl", "infoq"):
            whole = {budget: bits_of(allocation(found, criterion, budget)) for budget in budgets}
            for threshold in THRESHOLDS:
                fewer, share = predicted(found, criterion, threshold)
                cells = []
                for budget in budgets:
                    other = bits_of(allocation(fewer, criterion, budget))
                    differences = [abs(bits - other[unit]) for unit, bits in whole[budget].items()]
                    cells.append(f"{sum(map(bool, differences))} ({max(differences)})")
                lines.append(f"| {criterion} | {threshold:g} | {100 * share:.0f} % | {' | '.join(cells)} |")
        lines.append("")
    lines += [
        "Needed: share of the trials of weights.",
        "",
        f"| criterion | {' | '.join(text for _, text in WEIGHTS[1:])} |",
        f"|---|{'---|' * (len(WEIGHTS) - 1)}",
    ]
    for criterion in ("kl", "infoq"):
        cells = [f"{100 * needed(found, criterion, budget):.0f} %" for budget in WEIGHTS[1:]]
        lines.append(f"| {criterion} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Write the page."""
    parser = page_parser(__doc__)
    parser.add_argument("analyses", nargs="+", type=Path)
    arguments = parser.parse_args()
    lines = [
        "# What leaving trials out would save, and change",
        "",
        f"{arguments.date}; {versions('infoq-onnx')}; made by",
        "`python benchmarks/adaptive.py ANALYSES`, which explains both tables.",
    ]
    for folder in arguments.analyses:
        lines += section(folder)
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
