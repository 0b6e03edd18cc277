"""Generated classifiers, all the way through the tool: part of docs/benchmarks/robustness.md.

    python benchmarks/generated.py WORK [--count 500] [--seed 0]

`tests/generated.py` draws small valid classifiers over the supported operators. Each is analyzed with 24 images at 4
and 8 bits, and allocated three ways: 8/8, BitOps of 4/4 with weights rounded by gptq, and 5 × smaller weights. The tool
itself checks every file against its simulation. This script also compares the file at 8/8 with the float model: its
error as a share of the logits' standard deviation, and how often the class is the same. Results are printed as JSON
lines, and kept in WORK together with the models that fail.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from infoq_onnx import allocate, analyze
from infoq_onnx.errors import InfoQError, VerificationError
from infoq_onnx.evaluation import open_classifier
from tests.generated import classifiers

WAYS: dict[str, dict[str, Any]] = {
    "8/8": {"uniform_bits": (8, 8), "rounding": "nearest"},
    "4/4": {"bounds": {"bitops": "uniform:4/4"}},
    "5x": {"bounds": {"compression": "5"}, "weight_only": True, "rounding": "nearest"},
}
CLOSE = 0.1
"""Largest error of a file at 8/8 that needs no explanation, as a share of the logits' standard deviation."""


def logits_of(path: Path, values: np.ndarray) -> np.ndarray:
    classifier = open_classifier(path)
    size = classifier.batch or len(values)
    return np.concatenate([classifier.run(values[at : at + size]) for at in range(0, len(values), size)]).astype(float)


def measured(model: onnx.ModelProto, work: Path) -> dict[str, Any]:
    """Take a model all the way."""
    found: dict[str, Any] = {"nodes": sorted({node.op_type for node in model.graph.node})}
    path, data = work / "model.onnx", work / "data.npz"
    onnx.save(model, path)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    values = np.random.default_rng(0).standard_normal((24, *shape)).astype(np.float32)
    np.savez(data, x=values)
    begun = time.perf_counter()
    step = "analyze"
    try:
        rounding = {"projections": 2, "bits": (4, 8), "trial_rounding": "nearest", "workers": 1}
        folder = analyze(path, data, output=work / "model.infoq", **rounding)
        for step, options in WAYS.items():
            done = allocate(folder, output=work / f"{step.replace('/', '-')}.onnx", **options)
            found[step] = round(done.verification.relative_rms, 6)
        step = "compare"
        reference, quantized = logits_of(path, values), logits_of(work / "8-8.onnx", values)
        found["error"] = round(float(np.sqrt(((quantized - reference) ** 2).mean()) / max(reference.std(), 1e-12)), 5)
        found["agreement"] = float((quantized.argmax(1) == reference.argmax(1)).mean())
        found["outcome"] = "passed" if found["error"] <= CLOSE else "far from float"
    except VerificationError as error:
        found |= {"outcome": "not what was simulated", "step": step, "message": str(error)}
    except InfoQError as error:
        found |= {"outcome": "refused", "step": step, "message": str(error).replace(str(work), ".")}
    except Exception:  # noqa: BLE001 - a traceback is what this looks for
        found |= {"outcome": "traceback", "step": step, "message": traceback.format_exc()[-1500:]}
    found["seconds"] = round(time.perf_counter() - begun, 1)
    return found


def main() -> None:
    """Draw and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    counts: collections.Counter[str] = collections.Counter()
    operators: set[str] = set()
    log = (arguments.work / "generated.jsonl").open("w", encoding="utf-8")

    @seed(arguments.seed)
    @settings(
        max_examples=10 * arguments.count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(classifiers())
    def run(model: onnx.ModelProto) -> None:
        name = hashlib.sha256(model.SerializeToString()).hexdigest()[:12]
        if name in seen or len(seen) == arguments.count:
            return
        seen.add(name)
        with tempfile.TemporaryDirectory() as work:
            found = {"model": name, **measured(model, Path(work))}
        counts[found["outcome"]] += 1
        operators.update(found["nodes"])
        if found["outcome"] != "passed":
            onnx.save(model, arguments.work / f"{name}.onnx")
            print(json.dumps(found), flush=True)
        log.write(json.dumps(found) + "\n")
        log.flush()

    run()
    print(f"{len(seen)} classifiers, {len(operators)} operators: {dict(counts)}")


if __name__ == "__main__":
    main()
