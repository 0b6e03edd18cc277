"""Quantities: read exactly, written so that they are bounds."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoq_onnx.allocation.units import BYTES, COUNTS, format_quantity, parse_quantity
from infoq_onnx.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("23.04G", 23_040_000_000),
        ("16.326660096g", 16_326_660_096),
        (" 1.5 M ", 1_500_000),
        ("2T", 2 * 10**12),
        ("900K", 900_000),
        ("1e9", 10**9),
        ("4096", 4096),
        (".5", Decimal("0.5")),
    ],
)
def test_counts(text: str, expected: Decimal) -> None:
    assert parse_quantity(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.5MiB", 1_572_864), ("900KB", 900_000), ("1kib", 1024), ("2GB", 2 * 10**9), ("12 B", 12), ("3M", 3 * 10**6)],
)
def test_bytes(text: str, expected: int) -> None:
    assert parse_quantity(text, BYTES) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "G",
        "nan",
        "inf",
        "-inf",
        "-1G",
        "0",
        "0.0G",
        "1.2.3",
        "1,5G",
        "5 apples",
        "1e999999",
        "1e-999999999999999999999",
    ],
)
def test_nonsense_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_quantity(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_byte_suffixes_are_not_counts() -> None:
    with pytest.raises(SettingsError, match="one of K M G T"):
        parse_quantity("1.5MiB")


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 10**15), st.booleans(), st.sampled_from([COUNTS, BYTES, {}]))
def test_written_quantity_is_a_close_bound(value: int, up: bool, suffixes: dict[str, int]) -> None:
    read = parse_quantity(format_quantity(value, suffixes, up=up), suffixes)
    assert (read >= value) if up else (read <= value)
    assert abs(read - value) <= value * Decimal("0.001")


def test_format() -> None:
    assert format_quantity(1_312_345_678, COUNTS, up=True) == "1.313G"
    assert format_quantity(1_312_345_678, COUNTS, up=False) == "1.312G"
    assert format_quantity(1_000_001, BYTES, up=True) == "1.001MB"
    assert format_quantity(1_572_864, BYTES, up=True) == "1.5MiB"
    assert format_quantity(2.0, {}, up=True) == "2"
