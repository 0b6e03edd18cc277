"""Parsing of budgets and pins in the notation of the command line."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from infoq_onnx.allocation.costs import Budget, by_unit, total_of, uniform
from infoq_onnx.allocation.metrics import METRICS, Metric, read_table
from infoq_onnx.allocation.units import parse_quantity
from infoq_onnx.errors import SettingsError, about, setting
from infoq_onnx.schema import BASELINE_BITS, BITS, Bound, Layer, Network, Unit


@dataclass(frozen=True)
class Pins:
    """Units with a fixed bit-width."""

    bits: Mapping[Unit, int] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    """The pins as written by the user."""


def parse_budget(name: str, text: str, network: Network) -> Budget:
    """Parse a budget: a quantity (`23.04G`, `1.5MiB`, `10.66x`) or `uniform:W/A`, the cost of all layers at W/A bits.

    Parameters
    ----------
    name : str
        Metric to bound, a key of `metrics.METRICS`.
    text : str
        The budget. `uniform:W` suffices if the metric counts only weights.
    network : Network
        The network whose layers `uniform` refers to.

    Returns
    -------
    Budget

    Raises
    ------
    SettingsError
        The text is not a quantity and not bit-widths, the metric does not exist, or the network has nothing that the
        metric counts.
    """
    if name not in METRICS:
        raise SettingsError(f"there is no metric {name!r} to bound: choose among {', '.join(METRICS)}")
    metric = METRICS[name]
    if not metric.terms(network):
        raise SettingsError(f"{setting(name)} {text}: the model has nothing that this counts; drop this bound")
    with about(setting(name)):
        head, colon, tail = text.partition(":")
        if colon and head.strip().lower() == "uniform":
            limit = _uniform_value(metric, tail, network)
        else:
            limit = float(parse_quantity(text, metric.suffixes))
    return Budget(metric, Bound(name, limit, text))


def parse_table(text: str, network: Network) -> Budget:
    """Parse a budget on costs listed in a file, such as `latency.csv:12ms`. See `metrics.table`.

    Parameters
    ----------
    text : str
        Path of the file, a colon, and the limit.
    network : Network
        The network whose layers the file lists.

    Returns
    -------
    Budget

    Raises
    ------
    SettingsError
        The file or the limit is invalid.
    """
    table, limit = read_table(text, network)
    return Budget(table, Bound(table.name, limit, text, table_sha256=table.sha256))


def _uniform_value(metric: Metric, text: str, network: Network) -> float:
    weight_bits, activation_bits = _parse_bits(text, BITS)
    kinds = {unit.kind for term in metric.terms(network) for unit in term.units}
    if (weight_bits is None and "weight" in kinds) or (activation_bits is None and "activation" in kinds):
        raise SettingsError(f"'uniform:{text}' lacks a width that counts here: write uniform:W/A such as uniform:4/4")
    bits = by_unit(*uniform(network, weight_bits or BASELINE_BITS, activation_bits or BASELINE_BITS))
    return metric.value(network, total_of(metric.terms(network), bits))


def parse_pins(texts: Iterable[str], network: Network, bits: Sequence[int] = BITS) -> Pins:
    """Parse pins: `NAME=W/A`, `NAME=W` (weights only) or `NAME=/A` (activations only).

    NAME is the name of a layer, a pattern with `*`, `?` or `[…]`, or `first` or `last`. A applies to the activation
    groups that feed the layer, which other layers may share.

    Parameters
    ----------
    texts : iterable of str
        The pins.
    network : Network
        The network whose layers are named.
    bits : sequence of int
        Allowed bit-widths; 8 is always allowed.

    Returns
    -------
    Pins

    Raises
    ------
    SettingsError
        A layer does not exist (the message lists the closest names), a bit-width is not allowed, there is nothing to
        pin, or two pins contradict each other.
    """
    pinned: dict[Unit, int] = {}
    source: dict[Unit, str] = {}
    texts = tuple(texts)
    for text in texts:
        name, equals, widths = text.rpartition("=")
        if not equals:
            raise SettingsError(
                f"{setting('pins')} {text or repr(text)}: write NAME=W/A such as first=8/8, NAME=W or NAME=/A"
            )
        with about(f"{setting('pins')} {text}"):
            weight_bits, activation_bits = _parse_bits(widths, sorted({*bits, BASELINE_BITS}))
            layers = _find_layers(name, network)
        wanted: dict[Unit, int] = {}
        for layer in layers:
            if weight_bits is not None and layer.weight is not None:
                wanted[Unit("weight", layer.name)] = weight_bits
            if activation_bits is not None:
                wanted |= {Unit("activation", group): activation_bits for group in layer.groups}
        if not wanted:
            raise SettingsError(
                f"{setting('pins')} {text}: {layers[0].name} has no weights; write {name}=/A for its inputs"
            )
        for unit, width in wanted.items():
            if pinned.get(unit, width) != width:
                what = "weights" if unit.kind == "weight" else "activation"
                raise SettingsError(
                    f"{setting('pins')} {text} contradicts {setting('pins')} {source[unit]} on {what} {unit.name}; "
                    "drop one"
                )
            pinned[unit] = width
            source[unit] = text
    return Pins(pinned, texts)


def _parse_bits(text: str, allowed: Sequence[int]) -> tuple[int | None, int | None]:
    """Parse `W/A`, `W`, `W/` or `/A`; a missing part is None."""
    weight, _, activation = text.partition("/")
    width = {"": None, **{str(b): b for b in allowed}}
    if weight not in width or activation not in width or weight == activation == "":
        raise SettingsError(f"{text!r} is none of W/A, W and /A with bit-widths among {', '.join(map(str, allowed))}")
    return width[weight], width[activation]


def _find_layers(name: str, network: Network) -> tuple[Layer, ...]:
    """Return the layers that match an exact name, a pattern, `first` or `last`."""
    by_name = {layer.name: layer for layer in network.layers}
    if name in by_name:
        return (by_name[name],)
    if name in ("first", "last"):
        return (network.layers[0 if name == "first" else -1],)
    if found := tuple(layer for layer in network.layers if fnmatch.fnmatchcase(layer.name, name)):
        return found
    closest = difflib.get_close_matches(name, by_name, n=3, cutoff=0.3)
    hint = f"; the closest are {', '.join(closest)}" if closest else f"; the first is {next(iter(by_name))}"
    raise SettingsError(f"no layer is called {name!r}{hint}")
