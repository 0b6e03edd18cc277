"""What all benchmarks that write a page are told, and what their pages say of the run."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Iterable
from pathlib import Path

import onnx

from infoq_onnx.analyses import current
from infoq_onnx.errors import AnalysisError


def versions(*packages: str) -> str:
    """Name installed packages with their versions."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished analysis."""
    try:
        current(folder)
    except AnalysisError:
        return False
    return True


def given(shared: Path, work: Path, model: str) -> dict[str, str]:
    """What `analyze` is given: model, images, names of the classes.

    resnet18 has random weights, as no trained one lies in SHARED; labels would mean nothing to it, so it gets none.
    """
    images = shared / "data" / ("cifar10" if model.startswith("cifar10") else "imagenet")
    if model == "resnet18":
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from tests.networks import resnet18

        path, listed = work / "resnet18.onnx", work / "images.txt"
        onnx.save(resnet18(), path)
        found = sorted(path for path in (images / "calib").rglob("*") if path.is_file())
        listed.write_text("".join(f"{path}\n" for path in found))
        return {"model": str(path), "calib": str(listed)}
    inputs = {"model": str(shared / "models" / f"{model}.onnx"), "calib": str(images / "calib")}
    classes = images / "classes.txt"
    return {**inputs, "classes": str(classes)} if classes.exists() else inputs


def page_parser(doc: str) -> argparse.ArgumentParser:
    """Make a parser with where the page goes and what date it bears; `doc` is the benchmark's."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--date", required=True)
    return parser


def models_parser(doc: str, models: Iterable[str]) -> argparse.ArgumentParser:
    """Make a parser that asks for SHARED, for WORK, which keeps what is measured, and for some of the models, too."""
    parser = page_parser(doc)
    parser.add_argument("shared", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("models", nargs="+", choices=list(models))
    return parser
