"""Real architectures from both exporters of PyTorch, all the way through the tool: docs/compatibility.md.

    python benchmarks/architectures.py WORK     # needs the extra `zoo`: torch, torchvision, timm, onnxscript
    python benchmarks/compatibility.py WORK [--jobs 2]

Weights are random (seed 0) and images are noise: what is shown is that every step works, not how accurate it is. For
every model: inspect, analyze with 16 images at 4 and 8 bits, allocate twice (BitOps of 4/4; 5 × smaller weights), which
check what they wrote against the simulation, and lint. Results are kept beside the page, in docs/compatibility.jsonl: a
further run, on this machine or another, measures only the models that are missing there.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx

PAGE = Path(__file__).resolve().parents[1] / "docs" / "compatibility.md"
TIMEOUT = 900
BUDGETS = {"bitops": ("--bitops", "uniform:4/4"), "compression": ("--compression", "5", "--weight-only")}


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the tool in a process of its own."""
    command = [sys.executable, "-c", "from infoq_onnx.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def passed(name: str, *arguments: str) -> str:
    """Run a command; its stdout."""
    done = tool(*arguments)
    if done.returncode:
        raise RuntimeError(f"{name}: {(done.stderr.strip().splitlines() or ['?'])[-1]} (exit code {done.returncode})")
    return done.stdout


def measured(path: Path, work: Path) -> dict[str, Any]:
    """Take one model all the way."""
    found: dict[str, Any] = {"model": path.stem}
    value = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    size = max(16, value[0].dim_value)
    images = np.random.default_rng(0).standard_normal((size, *(dim.dim_value for dim in value[1:])))
    data, folder = work / "noise.npz", work / "model.infoq"  # a folder of its own for every model
    np.savez(data, x=images.astype(np.float32))
    begun = time.perf_counter()
    try:
        network = json.loads(passed("inspect", "inspect", str(path), "--json"))
        found["set_up"] = round(time.perf_counter() - begun, 1)
        found["layers"], found["float"] = len(network["layers"]), [one["op_type"] for one in network["skipped"]]
        options = [
            "--samples",
            "16",
            "--projections",
            "2",
            "--bits",
            "4,8",
            "--trial-rounding",
            "nearest",
            "--workers",
            "1",
        ]
        passed("analyze", "analyze", str(path), "--calib", str(data), *options, "-o", str(folder))
        for budget, bounds in BUDGETS.items():
            output = work / f"{budget}.onnx"
            passed(budget, "allocate", str(folder), *bounds, "--rounding", "nearest", "-o", str(output))
            kernels = json.loads(passed("lint", "lint", str(output), "--json"))["kernels"]
            allocation = json.loads(output.with_suffix(".json").read_text())
            found[budget] = {
                "integer": sum(one["integer"] for one in kernels),
                "kernels": len(kernels),
                "bytes": output.stat().st_size,
                "theory": allocation["costs"]["weight_bytes"],
            }
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        found["error"] = " ".join(str(error).split())[:400]
    found["seconds"] = round(time.perf_counter() - begun, 1)
    return found


def unexported(results: list[dict[str, Any]]) -> list[str]:
    """Models for which there is no file, since the exporter refuses them at an operator set."""
    parts = [tuple(one["model"].rsplit("-", 2)) for one in results]
    targets = sorted({(exporter, opset) for _, exporter, opset in parts})
    return [
        f"{name} ({exporter}, opset {opset})"
        for name in sorted({name for name, _, _ in parts})
        for exporter, opset in targets
        if (name, exporter, opset) not in parts
    ]


def page(results: list[dict[str, Any]]) -> str:
    """Write the results as a page of tables."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("onnx", "onnxruntime"))
    failed = [one for one in results if "error" in one]
    lines = [
        "# Compatibility",
        "",
        f"{len(results)} models of {len({one['model'].split('-')[0] for one in results})} architectures, exported by "
        f"PyTorch's two exporters at up to three operator sets each, were taken all the way through the tool: "
        f"{len(results) - len(failed)} passed every step. Weights are random (seed 0) and images are noise, so nothing "
        f"here is about accuracy. {datetime.date.today().isoformat()}, {versions}, made by "
        "`python benchmarks/architectures.py WORK` and `python benchmarks/compatibility.py WORK`.",
        "",
        "At the middle operator set of each exporter the batch is fixed to 2, at the others it is free. *Integer* is "
        "the share of layers that run as integer kernels, of all nodes that hold weights or multiply. *File* is the "
        "size of the written file against that of its weights alone. *Set-up* is what `inspect` takes. "
        "Times were taken beside other work on two cores.",
        "",
        f"PyTorch itself cannot export these: {', '.join(unexported(results))}.",
        "",
        "| architecture | exporter | opset | layers | left in float | integer | file / weights | set-up, s | all, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        name, exporter, opset = one["model"].rsplit("-", 2)
        if "error" in one:
            lines.append(f"| {name} | {exporter} | {opset} | {one.get('layers', '')} | {one['error']} | | | | |")
            continue
        floats = ", ".join(sorted(set(one["float"]))) or "–"
        first, second = (one[budget] for budget in BUDGETS)
        shares = f"{first['integer']}/{first['kernels']}"
        sizes = " ".join(f"{each['bytes'] / each['theory']:.2f}" for each in (first, second))
        lines.append(
            f"| {name} | {exporter} | {opset} | {one['layers']} | {floats} | {shares} | {sizes} | {one['set_up']} | "
            f"{one['seconds']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    kept = arguments.page.with_suffix(".jsonl")
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    results = {found["model"]: found for found in map(json.loads, lines)}

    def run(path: Path) -> None:
        with tempfile.TemporaryDirectory(dir=arguments.work) as scratch:
            found = measured(path, Path(scratch))
        results[found["model"]] = found
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        print(json.dumps(found), flush=True)

    missing = [path for path in arguments.work.glob("*.onnx") if path.stem not in results]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        # small files first, so that a run that is stopped has measured most of them
        list(pool.map(run, sorted(missing, key=lambda path: (path.stat().st_size, path.name))))
    arguments.page.write_text(page([results[name] for name in sorted(results)]), encoding="utf-8")


if __name__ == "__main__":
    main()
