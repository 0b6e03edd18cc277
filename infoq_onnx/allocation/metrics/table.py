"""A cost read from a CSV file: the latency, energy, … of each layer at each pair of bit-widths.

::

    layer,w_bits,a_bits,cost
    conv1,8,8,0.31ms
    conv1,4,8,0.22ms

For a product of two activations, `w_bits` are the bits of the second input. A layer can always run with more bits than
it needs. The cost of a pair of bit-widths is therefore the lowest listed cost of all pairs with at least as many bits
on both sides, and the file omits pairs that the hardware does not support.
"""

from __future__ import annotations

import csv
import decimal
import hashlib
import io
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path

from infoq_onnx.allocation.metrics.base import Term
from infoq_onnx.allocation.metrics.bitops import multiplied
from infoq_onnx.errors import SettingsError, setting
from infoq_onnx.schema import BITS, Network

COLUMNS = ("layer", "w_bits", "a_bits", "cost")
WIDEST = 32
"""Largest bit-width that a file may list: float32."""
LARGEST_FILE = 2**26
"""Largest file, in bytes."""
MOST_STEPS = 2**50
"""Largest limit in steps. Beyond it, a float64 limit could no longer distinguish adjacent steps."""
_PREFIXES = {"": 0, "m": -3, "u": -6, "µ": -6, "n": -9}
UNITS: Mapping[str, tuple[str, int]] = {
    prefix + unit: (unit, power) for unit in ("s", "J") for prefix, power in _PREFIXES.items()
}
"""Suffix → base unit and power of ten."""

Pair = tuple[int, int]
"""Bits of the weights and of the activations."""


@dataclass(frozen=True)
class Table:
    """The costs of a network's layers, as a metric."""

    label: str
    """Name of the file."""
    costs: Mapping[str, Mapping[Pair, int]]
    """Layer → pair → cost, in steps."""
    step: Fraction
    """Size of a step, in the unit of the limit: a power of ten of which all costs are multiples, or rounded up."""
    suffix: str
    """Unit of the limit."""
    sha256: str
    """Hash of the file."""
    name: str = "budget"
    at_most: bool = True

    @property
    def suffixes(self) -> Mapping[str, int]:
        """Return the unit of the limit, with factor 1."""
        return {self.suffix: 1} if self.suffix else {}

    def terms(self, network: Network) -> tuple[Term, ...]:
        """Return one term per layer: its cost by the bits of its activations and weights."""
        found = []
        for layer in network.layers:
            pairs = self.costs[layer.name]
            whole: dict[tuple[int, ...], int] = {(a, w): pairs[w, a] for w, a in pairs}
            found.append(Term(1, multiplied(layer), whole))
        return tuple(found)

    def value(self, network: Network, total: int) -> float:  # noqa: ARG002
        """Convert steps to the unit of the limit."""
        return float(total * self.step)

    def total(self, network: Network, value: Fraction) -> Fraction:  # noqa: ARG002
        """Convert the unit of the limit to steps."""
        return value / self.step


def read_table(text: str, network: Network) -> tuple[Table, float]:
    """Read a table of costs and its limit from a budget such as `latency.csv:12ms`.

    Parameters
    ----------
    text : path of the file, a colon, and the limit with one of `UNITS` or no unit; costs without a unit have the unit
        of the limit
    network : the network whose layers the file lists

    Returns
    -------
    table : Table
    limit : float
        The limit, in its own unit.

    Raises
    ------
    SettingsError
        The file cannot be read, lacks a layer, or lists an unknown layer; or a cost or the limit is not a quantity.
    """
    name, colon, written = text.rpartition(":")
    if not colon or not name:
        raise SettingsError(f"{setting('tables')} {text or repr(text)}: write TABLE.csv:LIMIT such as latency.csv:12ms")
    limit, suffix = _quantity(written, f"{setting('tables')} {text}")
    path = Path(name)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise SettingsError(f"{setting('tables')} {text}: {path} is too large for a table of costs")
        content = path.read_bytes()
        lines = content.decode("utf-8-sig")
    except OSError as error:
        raise SettingsError(
            f"{setting('tables')} {text}: cannot read {path}: {error.strerror or error}; check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{setting('tables')} {text}: {path} is not UTF-8 text; save it as CSV in UTF-8") from error
    listed = _rows(lines, path, suffix, network)
    digits = max(0, *(-_exponent(cost) for pairs in listed.values() for cost in pairs.values()))
    while digits and limit.scaleb(digits) > MOST_STEPS:
        digits -= 1
    # costs with more digits are rounded up, so that the limit holds for the true ones
    steps = {layer: {pair: _steps(cost, digits) for pair, cost in pairs.items()} for layer, pairs in listed.items()}
    costs = {layer: _as_wide_as(pairs, layer, path) for layer, pairs in steps.items()}
    if missing := [layer.name for layer in network.layers if layer.name not in costs]:
        raise SettingsError(f"{path} has no row for layer {missing[0]}: every layer needs its costs")
    digest = hashlib.sha256(content).hexdigest()
    return Table(path.name, costs, Fraction(1, 10**digits), suffix, digest), float(limit)


def _rows(lines: str, path: Path, suffix: str, network: Network) -> dict[str, dict[Pair, Decimal]]:
    """Parse the rows of the file. Costs are converted to the unit of the limit."""
    try:
        reader = csv.DictReader(io.StringIO(lines, newline=""), skipinitialspace=True, strict=True)
        names = [name.strip().lower() for name in reader.fieldnames or ()]
        if sorted(names) != sorted(COLUMNS):
            raise SettingsError(f"{path}: the first line has to be {','.join(COLUMNS)}, with commas")
        reader.fieldnames = names
        known = {layer.name for layer in network.layers}
        found: dict[str, dict[Pair, Decimal]] = {}
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise SettingsError(f"{where}: expected {len(COLUMNS)} values, {','.join(COLUMNS)}")
            layer = row["layer"].strip()
            if layer not in known:
                raise SettingsError(f"{where}: no layer is called {layer!r}; infoq-onnx inspect lists them")
            pair = (_width(row["w_bits"], where), _width(row["a_bits"], where))
            if pair in found.setdefault(layer, {}):
                raise SettingsError(f"{where}: {layer} at {pair[0]}/{pair[1]} bits has a cost already")
            found[layer][pair] = _converted(row["cost"], where, suffix)
    except csv.Error as error:
        raise SettingsError(f"{path} is not a CSV file: {error}") from error
    if not found:
        raise SettingsError(f"{path} lists no costs")
    return found


def _as_wide_as(listed: Mapping[Pair, int], layer: str, path: Path) -> dict[Pair, int]:
    """Give each pair the lowest cost among the listed pairs with at least as many bits on both sides."""
    found = {}
    for pair in itertools.product(BITS, BITS):
        wider = [cost for (w, a), cost in listed.items() if w >= pair[0] and a >= pair[1]]
        if not wider:
            raise SettingsError(
                f"{path} has no row for {layer} at {pair[0]}/{pair[1]} bits, nor at more: add one at 8/8"
            )
        found[pair] = min(wider)
    return found


def _steps(cost: Decimal, digits: int) -> int:
    with decimal.localcontext(prec=100):
        return int(cost.scaleb(digits).to_integral_value(decimal.ROUND_CEILING))


def _width(text: str, where: str) -> int:
    written = text.strip()
    if not written.isdecimal() or not 1 <= int(written) <= WIDEST:
        raise SettingsError(f"{where}: {written!r} is not a bit-width from 1 to {WIDEST}")
    return int(written)


def _converted(text: str, where: str, suffix: str) -> Decimal:
    cost, own = _quantity(text, where)
    if own == suffix or not own:
        return cost
    if not suffix or UNITS[own][0] != UNITS[suffix][0]:
        limit = f"in {suffix}" if suffix else "without a unit"
        raise SettingsError(f"{where}: the cost is in {own} and the limit {limit}: give both the same unit")
    return cost.scaleb(UNITS[own][1] - UNITS[suffix][1])


def _quantity(text: str, where: str) -> tuple[Decimal, str]:
    """Parse a non-negative number and its unit."""
    written = text.strip()
    suffix = next((s for s in sorted(UNITS, key=len, reverse=True) if written.endswith(s)), "")
    try:
        value = Decimal(written[: len(written) - len(suffix)].strip())
    except InvalidOperation:
        value = Decimal("nan")
    if not value.is_finite() or value < 0 or not -30 <= _exponent(value) <= 30 or value > Decimal("1e30"):
        raise SettingsError(
            f"{where}: {written!r} is not a quantity: write a number from 1e-30 to 1e30, or 0, and perhaps one of the "
            f"units {', '.join(UNITS)}"
        )
    return value, suffix


def _exponent(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    return exponent if isinstance(exponent, int) else 99
