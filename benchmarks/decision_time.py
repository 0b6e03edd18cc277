"""How long does `analyze` take with its defaults, and how long did it take when it tried everything on all images?

    python benchmarks/decision_time.py SHARED WORK OLD cifar10_resnet20 squeezenet1_1 mobilenetv2 resnet18 \
        -o docs/benchmarks/decision_time.md --date 2026-11-27

OLD is a checkout of the version to compare with, 7e9f6de^. Of its trials, only a part is run; the rest is counted up by
the share of the work that it reports. WORK keeps what was measured, so that models can be done one by one. Run nothing
beside it. Linux only.
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

SHARE = 0.12
"""Share of the old trials' work that is run."""
CASES: dict[str, dict[str, Any]] = {
    "cifar10_resnet20": {"preprocessing": "imagenet", "samples": 1000},
    "squeezenet1_1": {"preprocessing": "imagenet", "samples": 200},
    "mobilenetv2": {"preprocessing": "tf", "samples": 200},
    "resnet18": {"preprocessing": "imagenet", "samples": 1000},
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
        "ranges": begun["ranges"] - start,
        "rounding": begun["rounding"] - start,
        "trials": begun["trials"] - start,
        "whole": end - start if trials is None else begun["trials"] - start + trials,
        "peak": memory.most / 2**20,
    }
    print(json.dumps(found))


def measured(shared: Path, work: Path, code: Path, name: str, until: float) -> dict[str, float]:
    """Analyze a model with the code in a folder, or read what that took."""
    path = work / f"{name}.{'new' if until > 1 else 'old'}.json"
    if not path.exists():
        output = work / f"{path.stem}.infoq"
        arguments = {**given(shared, work, name), **CASES[name], "output": str(output), "force": True}
        here = Path(__file__).resolve().parent
        run = subprocess.run(
            [sys.executable, __file__, "--child", json.dumps(arguments), str(until)],
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
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(exist_ok=True)
    lines = [
        "# Time of a decision",
        "",
        f"{arguments.date}; {versions('infoq-onnx', 'onnxruntime', 'numpy', 'numba')}; {os.cpu_count()} processors;",
        f"made by `python benchmarks/decision_time.py SHARED WORK OLD {' '.join(arguments.models)}`.",
        "",
        "`analyze` with its defaults but for the number of images, as on the command line: *new* is this version,",
        "*old* is the version that tried all bit-widths on all images (7e9f6de^). Of the old trials, the first "
        f"{100 * SHARE:.0f} % of the",
        "work were run, and the others counted up. Peak: the most memory that all processes together had resident; of",
        "the old version, until it was stopped.",
        "",
        "| model | images | version | before rounding, s | rounding, s | trials, s | whole, s | peak, MiB | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    new_code = Path(__file__).resolve().parents[1]
    for name in arguments.models:
        new = measured(arguments.shared.resolve(), work, new_code, name, 2.0)
        old = measured(arguments.shared.resolve(), work, arguments.old.resolve(), name, SHARE)
        for version, found in (("old", old), ("new", new)):
            cells = (
                name,
                str(CASES[name]["samples"]),
                version,
                f"{found['rounding']:.0f}",
                f"{found['trials'] - found['rounding']:.0f}",
                f"{found['whole'] - found['trials']:.0f}",
                f"{found['whole']:.0f}",
                f"{found['peak']:.0f}",
                f"{old['whole'] / new['whole']:.1f}" if version == "new" else "",
            )
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(json.loads(sys.argv[2]), float(sys.argv[3]))
    else:
        main()
