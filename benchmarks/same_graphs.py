"""Hashes of what the tool writes, to compare two versions of it: the same hashes, the same graphs.

    python benchmarks/same_graphs.py SHARED WORK

SHARED is the folder with the real models and images. WORK keeps analyses and models. Every file comes from the tool's
command line, as it is installed (or found on PYTHONPATH). One line a model: the SHA-256 of its nodes, initializers,
inputs, outputs and local functions. Metadata are left out, as they hold versions and hashes of other files.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

import onnx

ANALYSES = {
    "cifar10_resnet20": (
        "cifar10",
        ("--preprocess", "imagenet", "--samples", "200", "--projections", "32"),
        {
            "bitops-4-4": ("--bitops", "uniform:4/4"),
            "compression-10.66": ("--compression", "10.66", "--weight-only"),
            "infoq-size": ("--size", "150KB", "--criterion", "infoq", "--pin", "first=8/8"),
        },
    ),
    "vit_tiny": (
        "imagenet",
        ("--preprocess", "tf", "--samples", "64", "--projections", "8", "--bits", "3,4,6,8", "--weight-only"),
        {
            "compression-8": ("--compression", "8", "--weight-only"),
            "uniform-4-8": ("--uniform", "4/8"),
            "size": ("--size", "4MB", "--weight-only", "--no-repair"),
        },
    ),
}


def graph_hash(path: Path) -> str:
    """Hash what a model computes: everything but its metadata."""
    model = onnx.load(path)
    del model.metadata_props[:]
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def main() -> None:
    """Run every case that is not there yet, and print the hashes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("models", nargs="*", default=list(ANALYSES), help="of which models")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    shared: Path = arguments.shared.resolve()
    work.mkdir(parents=True, exist_ok=True)

    def run(*command: str) -> None:
        print("infoq-onnx", *command, file=sys.stderr, flush=True)
        subprocess.run(["infoq-onnx", *command], cwd=work, check=True, stdout=subprocess.DEVNULL)

    if not (work / "demo" / "mixed.onnx").exists():
        run("demo", "-o", "demo")
    for name in ("uniform", "mixed"):
        print(f"demo {name} {graph_hash(work / 'demo' / f'{name}.onnx')}", flush=True)
    for model in arguments.models:
        images, options, budgets = ANALYSES[model]
        if not list((work / f"{model}.infoq").rglob("analysis.json")):
            folder = shared / "data" / images
            if (folder / "classes.txt").exists():
                options = (*options, "--classes", str(folder / "classes.txt"))
            run(
                "analyze",
                str(shared / "models" / f"{model}.onnx"),
                "--calib",
                str(folder / "calib"),
                "--effort",
                "full",
                *options,
            )
        for name, budget in budgets.items():
            file = work / f"{model}-{name}.onnx"
            if not file.exists():
                run("allocate", f"{model}.infoq", *budget, "-o", file.name)
            print(f"{model} {name} {graph_hash(file)}", flush=True)


if __name__ == "__main__":
    main()
