"""Figure: information lost at the last layers against accuracy lost, one point a layer at 2-bit weights.

    python benchmarks/correlation.py ANALYSIS -o docs/figures/correlation.svg

ANALYSIS is a folder that `infoq-onnx analyze` made. Needs matplotlib (extra `docs`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

from infoq_onnx import read_analysis
from infoq_onnx.sensitivity.observers import pearson


def main() -> None:
    """Draw the figure and print the correlations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("analysis", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=2)
    arguments = parser.parse_args()
    analysis = read_analysis(arguments.analysis)
    trials = [trial for trial in analysis.trials if trial.unit.kind == "weight" and trial.bits == arguments.bits]

    # the same data must give the same file
    mpl.rcParams.update({"svg.hashsalt": "infoq-onnx", "svg.fonttype": "none", "font.size": 9})
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
    tensors = (analysis.candidates[-2].tensor, analysis.candidates[-1].tensor)
    for axis, tensor, what in zip(axes, tensors, ("pooled features", "logits"), strict=True):
        pairs = [(trial, trial.deltas[tensor]) for trial in trials if tensor in trial.deltas]
        seen = [(trial, delta) for trial, delta in pairs if delta.ly is not None]
        lost = [abs(delta.ly) for _, delta in seen]
        drops = [100 * trial.top1_drop for trial, _ in seen]
        r = pearson(lost, drops)
        print(f"{what} ({tensor}): r = {r:.3f} over {len(seen)} layers")
        axis.errorbar(lost, drops, xerr=[delta.ly_se for _, delta in seen], fmt="o", markersize=4)
        axis.set_xlabel(f"|ΔSMI(L;Y)| at the {what}, nats")
        axis.set_title(f"r = {r:.2f}, {len(seen)} layers", fontsize=9)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("drop of top-1, points")
    figure.suptitle(f"{Path(analysis.model.path).stem}, one layer at {arguments.bits}-bit weights", fontsize=10)
    figure.savefig(arguments.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
