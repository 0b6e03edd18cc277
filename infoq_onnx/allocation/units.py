"""Parsing and formatting of quantities such as 23.04G, 1.5MiB and 900KB."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal, InvalidOperation
from string import ascii_letters

from infoq_onnx.errors import SettingsError

COUNTS: Mapping[str, int] = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BYTES: Mapping[str, int] = {
    **{"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    **{"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40},
    **COUNTS,
}

LARGEST = Decimal("1e30")
"""Largest number that a quantity may have. Numbers from 1e-30 to 1e30 with any suffix are normal float64 values."""


def parse_quantity(text: str, suffixes: Mapping[str, int] = COUNTS) -> Decimal:
    """Parse a positive quantity such as `23.04G` exactly.

    Parameters
    ----------
    text : str
        A decimal number, optionally with a suffix; letter case does not matter.
    suffixes : mapping of str to int
        Suffix → factor: `COUNTS`, `BYTES`, or an empty mapping for plain numbers.

    Returns
    -------
    Decimal

    Raises
    ------
    SettingsError
        The text is not a finite number above zero with a known suffix.
    """
    factors = {suffix.lower(): factor for suffix, factor in suffixes.items()}
    written = text.strip()
    number = written.rstrip(ascii_letters)
    suffix = written[len(number) :]
    try:
        factor = factors[suffix.lower()] if suffix else 1
        value = Decimal(number.strip())
    except (KeyError, InvalidOperation):
        among = "one of " if len(suffixes) > 1 else ""
        allowed = f", optionally followed by {among}{' '.join(suffixes)}" if suffixes else ""
        raise SettingsError(f"{text!r} is not a quantity: write a number such as 4.5{allowed}") from None
    if not 1 / LARGEST <= value <= LARGEST:
        raise SettingsError(f"{text!r} is not a usable quantity: write a number above zero, up to 1e30")
    return value * factor


def format_quantity(value: float, suffixes: Mapping[str, int], *, up: bool) -> str:
    """Format `value` with four significant digits, rounded up or down.

    The caller chooses the direction so that the formatted value is a limit that can be met.

    Parameters
    ----------
    value : float
    suffixes : mapping of str to int
        As for `parse_quantity`. The largest suffix that leaves a number of at least 1 is used.
    up : bool
        Round up; otherwise down.

    Returns
    -------
    str
    """
    suffix, factor = max(
        (item for item in suffixes.items() if item[1] <= value), key=lambda item: item[1], default=("", 1)
    )
    context = Context(prec=4, rounding=ROUND_CEILING if up else ROUND_FLOOR)
    return f"{context.divide(Decimal(value), Decimal(factor)).normalize():f}{suffix}"
