"""Quantities as people write them: 23.04G, 1.5MiB, 900KB."""

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
"""Nothing real is larger; and 1e-30 … 1e30 with any suffix is a normal float64."""


def parse_quantity(text: str, suffixes: Mapping[str, int] = COUNTS) -> Decimal:
    """Read a positive quantity such as `23.04G`, exactly.

    Parameters
    ----------
    text : str
        A decimal number and at most one suffix; letter case does not matter.
    suffixes : mapping of str to int
        The suffixes there are, with their factors: `COUNTS`, `BYTES`, or an empty one for plain numbers.

    Raises
    ------
    SettingsError
        Not a number, not finite, zero or negative, or a suffix that is not among these.
    """
    factors = {suffix.lower(): factor for suffix, factor in suffixes.items()}
    written = text.strip()
    number = written.rstrip(ascii_letters)
    suffix = written[len(number) :]
    try:
        factor = factors[suffix.lower()] if suffix else 1
        value = Decimal(number.strip())
    except (KeyError, InvalidOperation):
        allowed = f", alone or with one of {' '.join(suffixes)}" if suffixes else ""
        raise SettingsError(f"{text!r} is not a quantity: write a number such as 4.5{allowed}") from None
    if not 1 / LARGEST <= value <= LARGEST:
        raise SettingsError(f"{text!r} is not a usable quantity: write a number above zero")
    return value * factor


def format_quantity(value: float, suffixes: Mapping[str, int], *, up: bool) -> str:
    """Write `value` in four significant digits, rounded up or down.

    Rounding away from what can be reached keeps a hint honest: typed back in, it is a limit that can be met.

    Parameters
    ----------
    value : float
    suffixes : mapping of str to int
        As for `parse_quantity`; the largest that leaves a number of at least one is used.
    up : bool
        Round towards infinity, else towards zero.
    """
    suffix, factor = max(
        (item for item in suffixes.items() if item[1] <= value), key=lambda item: item[1], default=("", 1)
    )
    context = Context(prec=4, rounding=ROUND_CEILING if up else ROUND_FLOOR)
    return f"{context.divide(Decimal(value), Decimal(factor)).normalize():f}{suffix}"
