"""The public names, and that naming the package costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import infoq_onnx

PUBLIC = [
    "Allocation",
    "AllocationSettings",
    "Analysis",
    "FinetuneSettings",
    "InfoQError",
    "MeasurementSettings",
    "Network",
    "Preprocessing",
    "allocate",
    "analyze",
    "compress",
    "criteria",
    "evaluate",
    "find_analysis",
    "finetune",
    "inspect",
    "lint",
    "plan",
    "read_analysis",
    "score",
]
"""A name that goes breaks those who use it: that needs a new version, and an entry in the changelog."""

HEAVY = ("numpy", "onnx", "onnxruntime", "scipy", "numba", "PIL", "pulp", "torch", "click", "rich")


def python(code: str) -> str:
    """Run code in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_public_names() -> None:
    assert infoq_onnx.__all__ == PUBLIC
    assert dir(infoq_onnx) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_can_be_had_and_is_documented(name: str) -> None:
    value = getattr(infoq_onnx, name)
    assert callable(value)
    assert value.__doc__
    assert value.__name__ == name


def test_names_stay_what_they_are_whatever_is_imported() -> None:
    """No module of the package may hide a function of the same name."""
    code = (
        "import importlib, pkgutil, infoq_onnx\n"
        "for module in pkgutil.iter_modules(infoq_onnx.__path__):\n"
        "    importlib.import_module('infoq_onnx.' + module.name)\n"
        "print(all(callable(getattr(infoq_onnx, name)) for name in infoq_onnx.__all__))"
    )
    assert python(code) == "True\n"


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import infoq_onnx, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert python(code) == "[]\n"


def test_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = infoq_onnx.no_such_name
