"""Why trials run in float: what integer kernels behind a unit would do to its scores.

    python benchmarks/integer_rest.py ANALYSIS... -o docs/benchmarks/integer_rest.md --date 2026-11-22

ANALYSIS is a folder that `infoq-onnx analyze` made. Each of its trials is emitted as Q/DQ and run by integer kernels,
as is the baseline with everything at 8 bits; the KL divergence of the two is compared with the trial's own. Of more
than 240 trials, 240 are drawn.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnxruntime as ort
from page import page_parser, versions
from scipy.stats import spearmanr

from infoq_onnx.allocation.costs import uniform
from infoq_onnx.analyses import current, read_analysis
from infoq_onnx.emit.qdq import qdq_model
from infoq_onnx.emit.storage import STORAGES
from infoq_onnx.graph.session import open_session, processors
from infoq_onnx.preparation import calibration_again, prepare_again
from infoq_onnx.quantize.codes import load_codes
from infoq_onnx.quantize.table import load_table
from infoq_onnx.schema import BASELINE_BITS, Bits, Trial
from infoq_onnx.simulate.equalization.equalize import equalized
from infoq_onnx.simulate.quantizers.placement import place
from infoq_onnx.simulate.quantizers.quantizable import Quantizable
from infoq_onnx.simulate.running.batching import batch_size, logits_of
from infoq_onnx.simulate.running.divergence import kl_divergence
from infoq_onnx.simulate.simulation import layer_codes

MOST = 240


def integer_kl(folder: Path) -> tuple[list[Trial], list[float], float]:
    """Trials of an analysis, their KL divergences with integer kernels everywhere, and how much faster these are."""
    found = read_analysis(folder)
    prepared = prepare_again(found, None)
    dataset, network = calibration_again(found, prepared, None), prepared.network
    table, rounded = load_table(current(folder).grids), load_codes(current(folder).codes)
    graph = equalized(prepared.graph, network, table.factors)
    of = Quantizable(graph, network, place(graph, network), table)

    def emitted(trial: Trial | None) -> ort.InferenceSession:
        bits = uniform(network, BASELINE_BITS, BASELINE_BITS)
        if trial is not None:
            changed = {"weight": dict(bits.weights), "activation": dict(bits.activations)}
            changed[trial.unit.kind][trial.unit.name] = trial.bits
            bits = Bits(changed["weight"], changed["activation"])
        model = qdq_model(of, bits, layer_codes(of, bits, rounded), STORAGES["int8"], {})
        return open_session(model)

    def logits(session: ort.InferenceSession) -> np.ndarray:
        return logits_of(session, graph, dataset, batch_size(graph)).astype(np.float64)

    integer, exact = emitted(None), open_session(graph.model)
    baseline = logits(integer)
    drawn = np.random.default_rng(0).permutation(len(found.trials))[:MOST]
    trials, divergences = [found.trials[index] for index in sorted(drawn)], []
    for trial in trials:
        divergences.append(float(np.mean(kl_divergence(baseline, logits(emitted(trial))))))
        if len(divergences) % 40 == 0:
            print(f"{folder.stem} {len(divergences)}/{len(trials)}", flush=True)
    times = []
    for session in (exact, integer):
        start = time.monotonic()
        logits(session)
        times.append(time.monotonic() - start)
    return trials, divergences, times[0] / times[1]


def section(folder: Path) -> list[str]:
    """One analysis' table."""
    trials, divergences, faster = integer_kl(folder)
    pairs: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for trial, divergence in zip(trials, divergences, strict=True):
        pairs[trial.unit.kind, trial.bits].append((trial.kl, divergence))
    both = [pair for group in pairs.values() for pair in group]
    lines = [
        "",
        f"## {folder.stem}",
        "",
        f"A whole pass is {faster:.1f} times as fast with integer kernels. Rank correlation over all {len(both)} "
        f"trials: {spearmanr(*zip(*both, strict=True)).statistic:.3f}.",
        "",
        "| trials | of | rank correlation | median KL, float | median KL, integer | smallest KL, float | integer |",
        "|---|---|---|---|---|---|---|",
    ]
    for (kind, bits), group in sorted(pairs.items(), key=lambda item: (item[0][0] != "weight", item[0][1])):
        exact, integer = zip(*group, strict=True)
        cells = [np.median(exact), np.median(integer), min(exact), min(integer)]
        lines.append(
            f"| {kind}s, {bits} bits | {len(group)} | {spearmanr(exact, integer).statistic:.2f} | "
            f"{' | '.join(f'{cell:.1e}' for cell in cells)} |"
        )
    return lines


def main() -> None:
    """Compare, and write the page."""
    parser = page_parser(__doc__)
    parser.add_argument("analyses", type=Path, nargs="+")
    arguments = parser.parse_args()
    lines = [
        "# How integer kernels downstream of a unit change its score",
        "",
        f"{arguments.date}; {versions('infoq-onnx', 'onnxruntime', 'numpy')}; {processors()} processors; made by",
        "`python benchmarks/integer_rest.py ANALYSES`; its docstring describes the method. KL divergences are in nats, "
        "on the",
        'analysed images. "Float" compares the trial with the baseline of `analyze`, whose activations are exact. '
        '"Integer"',
        "compares the emitted trial with the emitted network at 8 bits throughout, both run by integer kernels.",
        *(line for folder in arguments.analyses for line in section(folder)),
    ]
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
