"""Bounds on the size of the file: the smallest size that is told is the smallest that is met, whatever is pinned."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from infoq_onnx.errors import InfeasibleBudgetError
from infoq_onnx.pipeline import allocate
from infoq_onnx.pipeline.allocating import decide_bits
from infoq_onnx.pipeline.resolving import Places, resolve
from infoq_onnx.reporter import Silent
from infoq_onnx.schema import Allocation, AllocationSettings
from tests.pipeline.cases import Case

KIB = 1024
SLACK = 33
"""Bytes that another text of the same limit may take in the file."""


def decided(case: Case, path: Path, size: str, **settings: Any) -> Allocation:
    bounds = {"size": size, **settings.pop("bounds", {})}
    wanted = AllocationSettings(bounds=bounds, rounding="nearest", **settings)
    return decide_bits(resolve(case.analysis, wanted, Places(), None, path, Silent()))


def refusal(case: Case, path: Path, size: str, **settings: Any) -> str:
    with pytest.raises(InfeasibleBudgetError) as caught:
        decided(case, path, size, **settings)
    return str(caught.value)


def told(message: str) -> str:
    return message.split("smallest reachable is ")[1].split(" ")[0]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pins": ("first=8",)},
        {"pins": ("first=8", "last=8")},
        {"pins": ("first=2", "last=4")},
        {"pins": ("fc2=4/2",)},
        {"pins": ("*=8",)},
        {"pins": ("*=2",)},
        {"pins": ("first=8",), "bounds": {"compression": 5}},
        {"pins": ("last=8",), "bits": (2, 8)},
        {"bits": (4, 8), "target": "arm64"},
    ],
    ids=str,
)
def test_every_size_from_the_told_one_is_met_and_none_below(
    settings: dict[str, Any], case: Case, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    smallest = told(refusal(case, path, "1KiB", **settings))
    decided(case, path, smallest, **settings)
    size = math.ceil(float(smallest.removesuffix("KiB")) * KIB)
    for more in (0, 1, 2, 7, 30, 100, 300, 500, 900, 1500, 3000, 10_000):
        found = decided(case, path, f"{size + more}B", **settings)
        assert found.costs.weight_bytes + found.bounds[0].overhead <= size + more
    for less in (SLACK, 2 * SLACK, 300):
        # and each refusal tells the same size
        again = told(refusal(case, path, f"{size - less}B", **settings))
        assert float(again.removesuffix("KiB")) == pytest.approx(float(smallest.removesuffix("KiB")), abs=0.01)


def test_the_told_size_is_that_of_a_file(case: Case, tmp_path: Path) -> None:
    options: dict[str, Any] = {"pins": ("first=8", "fc2=4"), "rounding": "nearest", "output": tmp_path / "m.onnx"}
    with pytest.raises(InfeasibleBudgetError) as caught:
        allocate(case.analysis, bounds={"size": "1KiB"}, **options)
    found = allocate(case.analysis, bounds={"size": told(str(caught.value))}, **options)
    limit = found.allocation.bounds[0].limit
    assert limit - 2 * SLACK <= found.file_bytes <= limit


def test_pins_are_told_to_be_dropped_only_where_the_file_then_fits(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    size = told(refusal(case, path, "1KiB"))
    for pins, way in ((("first=8",), "drop the pin"), (("first=8", "last=8"), "drop pins")):
        assert refusal(case, path, size, pins=pins).endswith(f"; loosen the budget or {way}")
        assert refusal(case, path, "3KiB", pins=pins).endswith("; loosen the budget")
    decided(case, path, size)


def test_other_bounds_are_told_first(case: Case, tmp_path: Path) -> None:
    message = refusal(case, tmp_path / "m.onnx", "1KiB", bounds={"compression": 20})
    assert message.startswith("`compression` 20 cannot be met: the largest reachable is 16x (all layers at 2/2)")
