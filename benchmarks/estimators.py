"""Milliseconds an estimate: the package's estimators on one thread beside scikit-learn's, in the same run.

    python benchmarks/estimators.py

prints the tables, writes them to docs/benchmarks/estimators.md, and draws how the cost of KSG grows (matplotlib, extra
`docs`). Every time is the median over rounds in which both
sides take turns on the same points; the ratio is taken within each round, so a busy machine slows both.
"""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numba
import numpy as np
from numpy.typing import NDArray
from page import versions
from sklearn.feature_selection._mutual_info import _compute_mi_cc, _compute_mi_cd

from infoq_onnx.sensitivity.estimators import jitter, ksg_prepared, prepare, ross_batch

SAMPLES = (1000, 5000, 20000)
GROWTH = tuple(500 << power for power in range(8))
PROJECTIONS = 16
CLASSES = 50
ROUNDS = 7
K = 3
DOCS = Path(__file__).resolve().parents[1] / "docs"
TARGET = DOCS / "benchmarks" / "estimators.md"
FIGURE = DOCS / "figures" / "ksg.svg"


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def rounds_of(ours: Callable[[], object], theirs: Callable[[], object]) -> NDArray[np.float64]:
    """Milliseconds an estimate [rounds, (ours, theirs)]: `ours` does PROJECTIONS estimates, `theirs` one."""
    ours()
    return np.array([(milliseconds(ours) / PROJECTIONS, milliseconds(theirs)) for _ in range(ROUNDS)])


def compare(name: str, n: int, ours: Callable[[], object], theirs: Callable[[], object]) -> str:
    """One row."""
    rounds = rounds_of(ours, theirs)
    (mine, other), ratio = np.median(rounds, axis=0), np.median(rounds[:, 1] / rounds[:, 0])
    return f"| {name} | {n} | {mine:.2f} | {other:.2f} | {ratio:.1f}× |"


def gaussian(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Correlated pairs [n, PROJECTIONS]."""
    rng = np.random.default_rng(n)
    X = rng.standard_normal((n, PROJECTIONS))
    return X, 0.3 * X + rng.standard_normal(X.shape)


def rows(n: int) -> list[str]:
    X, Y = gaussian(n)
    x, y = X[:, 0].copy(), Y[:, 0].copy()
    rectified_X, rectified_Y = jitter(np.maximum(X, 0), 1), jitter(np.maximum(Y, 0), 2)
    rectified_x, rectified_y = rectified_X[:, 0].copy(), rectified_Y[:, 0].copy()
    prepared, rectified = prepare(X), prepare(rectified_X)
    labels = np.random.default_rng(0).integers(0, CLASSES, n)
    return [
        compare("KSG-1, Gaussian", n, lambda: ksg_prepared(prepared, Y, K), lambda: _compute_mi_cc(x, y, K)),
        compare(
            "KSG-1, half of each side at 0, jittered",
            n,
            lambda: ksg_prepared(rectified, rectified_Y, K),
            lambda: _compute_mi_cc(rectified_x, rectified_y, K),
        ),
        compare(f"Ross, {CLASSES} classes", n, lambda: ross_batch(X, labels, K), lambda: _compute_mi_cd(x, labels, K)),
    ]


def growth() -> list[str]:
    """Milliseconds of KSG by samples, ours and scikit-learn's, with how they grow; and a figure of it."""

    def medians(n: int) -> NDArray[np.float64]:
        X, Y = gaussian(n)
        prepared, x, y = prepare(X), X[:, 0].copy(), Y[:, 0].copy()
        return np.median(rounds_of(lambda: ksg_prepared(prepared, Y, K), lambda: _compute_mi_cc(x, y, K)), axis=0)

    times = np.array([medians(n) for n in GROWTH])
    n = np.array(GROWTH, dtype=float)
    work = n * np.log2(n)
    slopes = [float(np.polyfit(np.log(work), np.log(column), 1)[0]) for column in times.T]
    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    axes.loglog(n, times[:, 0], "o-", label=f"ours, slope {slopes[0]:.2f}")
    axes.loglog(n, times[:, 1], "s-", label=f"scikit-learn, slope {slopes[1]:.2f}")
    axes.loglog(n, times[-1, 0] * work / work[-1], ":", color="grey", label="n log n")
    axes.set(xlabel="samples n", ylabel="ms an estimate")
    axes.legend()
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})
    return [
        "Cost of KSG-1 (Gaussian) against the number of samples. The slope of log(time) against log(n log n) is "
        f"{slopes[0]:.2f} for ours",
        f"and {slopes[1]:.2f} for scikit-learn's.",
        "",
        "| samples | ours, ms | ns / (n log₂ n) | scikit-learn, ms |",
        "|---|---|---|---|",
        *(
            f"| {count} | {mine:.2f} | {1e6 * mine / amount:.1f} | {other:.2f} |"
            for count, amount, (mine, other) in zip(GROWTH, work, times, strict=True)
        ),
        "",
        "![cost of KSG against the number of samples](../figures/ksg.svg)",
        "",
    ]


def main() -> None:
    numba.set_num_threads(1)
    mpl.rcParams["svg.hashsalt"] = "infoq-onnx"
    packages = versions("numba", "numpy", "scipy", "scikit-learn")
    lines = [
        "# Mutual-information estimators",
        "",
        f"Milliseconds per estimate with k = {K} on one thread: medians of {ROUNDS} rounds in which both "
        "implementations take turns.",
        f"Ours estimates {PROJECTIONS} projections per call, with the x side of KSG sorted beforehand, as in the "
        "sweep.",
        "The estimates of both implementations agree to 1e-9 (tests/sensitivity/estimators).",
        "",
        "| estimator | samples | ours | scikit-learn | ratio |",
        "|---|---|---|---|---|",
        *(row for n in SAMPLES for row in rows(n)),
        "",
        *growth(),
        f"{datetime.date.today()}, Python {platform.python_version()}, {packages}, {platform.machine()}.",
        "Made by `python benchmarks/estimators.py`.",
        "",
    ]
    text = "\n".join(lines)
    print(text)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
