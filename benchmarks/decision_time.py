"""How long does `analyze` take with its defaults, what did `--dry-run` predict, and how long did it take before?

    python benchmarks/decision_time.py SHARED WORK OLD cifar10_resnet20 squeezenet1_1 mobilenetv2 resnet18 \
        -o docs/benchmarks/decision_time.md --date 2026-11-28

OLD is a checkout of the version to compare with, 7e9f6de^, which tried all bit-widths on all images. Of its trials,
only a part is run; the rest is counted up by the share of the work that it reports. Models after --new-only are not
compared. WORK keeps what was measured, so that models can be done one by one. Run nothing beside it. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from memory_use import Memory
from page import given, page_parser, versions

SHARE = 0.05
"""Share of the old trials' work that is run."""
CASES: dict[str, dict[str, Any]] = {
    "cifar10_resnet20": {"preprocessing": "imagenet", "samples": 1000},
    "squeezenet1_1": {"preprocessing": "imagenet", "samples": 1000},
    "mobilenetv2": {"preprocessing": "tf", "samples": 1000},
    "resnet18": {"preprocessing": "imagenet", "samples": 1000},
    "mobilenetv1_025": {"preprocessing": "tf", "samples": 1000},
    "vit_tiny": {"preprocessing": "tf", "samples": 1000},
}


class Partial:
    """A reporter that notes when stages begin, and stops an analysis after a share of its trials."""

    def __init__(self, until: float) -> None:
        self.until, self.begun = until, dict[str, float]()
        self.first_share = 0.0

    def progress(self, stage: str, detail: str, done: int, total: int, share: float | None = None) -> None:  # noqa: ARG002
        now = time.monotonic()
        self.begun.setdefault(stage, now)
        if stage == "trials" and share is not None and share >= self.until:
            raise Enough((now - self.begun["trials"]) / share)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    warn = note


class Enough(Exception):  # noqa: N818
    """Enough trials were run; the argument is the time of all, in seconds."""


def planned(arguments: dict[str, Any]) -> None:
    """Run what --dry-run does in this process, and print what it predicts and what it took."""
    start = time.monotonic()
    from infoq_onnx.pipeline import plan

    arguments = {name: value for name, value in arguments.items() if name not in ("output", "force")}
    found = plan(**arguments, workers="auto")
    print(
        json.dumps(
            {
                "rounding": found.ranges_seconds,
                "trials": found.ranges_seconds + found.rounding_seconds,
                "whole": found.seconds,
                "peak": found.bytes / 2**20,
                "took": time.monotonic() - start,
            }
        )
    )


def child(arguments: dict[str, Any], until: float) -> None:
    """Run an analysis in this process and print what it took."""
    start = time.monotonic()
    memory = Memory()
    memory.start()
    from infoq_onnx import analyze

    reporter, trials = Partial(until), None
    try:
        analyze(**arguments, workers="auto", reporter=reporter)
    except Enough as enough:
        (trials,) = enough.args
    end = time.monotonic()
    memory.over.set()
    begun = reporter.begun
    found = {
        "rounding": begun["rounding"] - start,
        "trials": begun["trials"] - start,
        "whole": end - start if trials is None else begun["trials"] - start + trials,
        "peak": memory.most / 2**20,
    }
    print(json.dumps(found))


def measured(shared: Path, work: Path, code: Path, name: str, way: str) -> dict[str, float]:
    """Analyze a model with the code in a folder, or plan to ("told"), or read what that took."""
    path = work / f"{name}.{way}.json"
    if not path.exists():
        output = work / f"{path.stem}.infoq"
        arguments = {**given(shared, work, name), **CASES[name], "output": str(output), "force": True}
        here = Path(__file__).resolve().parent
        run = subprocess.run(
            [sys.executable, __file__, "--child", json.dumps(arguments), way],
            env={**os.environ, "PYTHONPATH": f"{code}:{here}"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            cwd=work,
        )
        path.write_text(run.stdout.splitlines()[-1])
    found: dict[str, float] = json.loads(path.read_text())
    return found


def main() -> None:
    """Measure and write the page."""
    parser: argparse.ArgumentParser = page_parser(__doc__)
    parser.add_argument("shared", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("old", type=Path)
    parser.add_argument("models", nargs="+", choices=list(CASES))
    parser.add_argument("--new-only", nargs="*", choices=list(CASES), default=[], help="models not to compare with OLD")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(exist_ok=True)
    lines = [
        "# Time of a decision",
        "",
        f"{arguments.date}; {versions('infoq-onnx', 'onnxruntime', 'numpy', 'numba')}; {os.cpu_count()} processors;",
        f"made by `python benchmarks/decision_time.py SHARED WORK OLD {' '.join(arguments.models)}"
        + (f" --new-only {' '.join(arguments.new_only)}`." if arguments.new_only else "`."),
        "",
        "`analyze` with its defaults, as on the command line: *new* is this version, *old* is the version that tried",
        f"all bit-widths on all images (7e9f6de^). Of the old trials, the first {100 * SHARE:.0f} % of the work were",
        "run, and the others counted up. Peak: the most memory that all processes together had resident; of the old",
        "version, until it was stopped. *Told* is what `analyze --dry-run` predicts, in the seconds of the last",
        "column, right before the new version runs. ResNet18 has random weights. Ratio: the whole time as a multiple",
        "of that of the new version; *memory*: the same of the peak.",
        "",
        "| model | images | version | before rounding, s | rounding, s | trials, s | whole, s | peak, MiB | ratio | "
        "memory | predicted in, s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    new_code = Path(__file__).resolve().parents[1]
    for name in (*arguments.models, *arguments.new_only):
        ways = ("told", "new") if name in arguments.new_only else ("told", "new", "old")
        found = {
            way: measured(
                arguments.shared.resolve(), work, arguments.old.resolve() if way == "old" else new_code, name, way
            )
            for way in ways
        }
        for way in reversed(ways):
            one = found[way]
            cells = (
                name,
                str(CASES[name]["samples"]),
                way,
                f"{one['rounding']:.0f}",
                f"{one['trials'] - one['rounding']:.0f}",
                f"{one['whole'] - one['trials']:.0f}",
                f"{one['whole']:.0f}",
                f"{one['peak']:.0f}",
                "" if way == "new" else f"{one['whole'] / found['new']['whole']:.2f}",
                "" if way == "new" else f"{one['peak'] / found['new']['peak']:.2f}",
                f"{one['took']:.0f}" if way == "told" else "",
            )
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        given_arguments, way = json.loads(sys.argv[2]), sys.argv[3]
        if way == "told":
            planned(given_arguments)
        else:
            child(given_arguments, SHARE if way == "old" else 2.0)
    else:
        main()
