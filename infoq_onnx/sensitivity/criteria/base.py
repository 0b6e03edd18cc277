"""The definition of a criterion: a function that computes scores from the inputs it declares.

::

    @criterion(source="arXiv 0000.00000", needs=("weights", "grids"))
    def spread(context: Context, *, power: float = 2.0) -> list[Score]:
        "One line that states what the criterion scores."

Keyword-only parameters with a default are the criterion's options: `infoq-onnx score --criterion spread --power 3`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from infoq_onnx.errors import InfoQError, SettingsError, setting
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.schema import BASELINE_BITS, Candidate, LocalError, Network, Observer, Score, Trial, Unit, units_of

Need = Literal["weights", "grids", "activations", "trials", "information", "local_errors", "labels", "gradients"]
NEEDS: tuple[Need, ...] = get_args(Need)

PASSES: Mapping[Need, str] = {
    "trials": "the trials of analyze",
    "activations": "1 forward",
    "gradients": "1 forward, 1 backward",
}
"""Passes of the images through the network that each need requires. Needs not listed require none."""

OptionValue = bool | int | float | str

Batch = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Option:
    """An option of a criterion: its default and its help text."""

    default: OptionValue
    help: str


@dataclass(frozen=True)
class Scored:
    """Scores, with the observers that they are based on. A criterion without observers can return scores alone."""

    scores: Sequence[Score]
    observers: Sequence[Observer] = ()


class Context:
    """The inputs of a criterion, restricted to the needs that it declares. Each input is computed at its first use.

    Parameters
    ----------
    criterion : the criterion that receives this context
    network : layers and activation groups
    bits : bit-widths to score; the baseline width of 8 is dropped
    sources : function that computes each need
    """

    def __init__(
        self,
        criterion: Criterion,
        network: Network,
        bits: Sequence[int],
        sources: Mapping[Need, Callable[[], Any]],
    ) -> None:
        self.network = network
        self.bits = tuple(b for b in bits if b != BASELINE_BITS)
        self._criterion, self._sources = criterion, sources
        self._made: dict[Need, Any] = {}

    @property
    def weights(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """Float weights by layer name, after equalisation."""
        return self._get("weights")  # type: ignore[no-any-return]

    @property
    def grids(self) -> GridTable:
        """All quantization grids: weight scales and activation quantizers at each bit-width."""
        return self._get("grids")  # type: ignore[no-any-return]

    def activations(self) -> Iterator[Batch]:
        """Yield one batch at a time: for each activation group, its tensor [n, …] in the float network."""
        yield from self._get("activations")()

    @property
    def trials(self) -> Sequence[Trial]:
        """All trials that `analyze` measured. Their differences of mutual information have the need `information`."""
        return self._get("trials")  # type: ignore[no-any-return]

    @property
    def candidates(self) -> Sequence[Candidate]:
        """The observed tensors, with the baseline's mutual information at each. The need is `information`."""
        return self._get("information")  # type: ignore[no-any-return]

    @property
    def local_errors(self) -> Sequence[LocalError]:
        """How much each unit at each bit-width changes the outputs of its own layers."""
        return self._get("local_errors")  # type: ignore[no-any-return]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class of each image [N], in the order of `activations`: true labels, else the float network's predictions."""
        return self._get("labels")  # type: ignore[no-any-return]

    def _get(self, need: Need) -> Any:
        if need not in self._criterion.needs:
            raise SettingsError(f"criterion {self._criterion.name} uses {need}, which it does not declare to need")
        if need not in self._made:
            self._made[need] = self._sources[need]()
        return self._made[need]


@dataclass(frozen=True)
class Criterion:
    """A method that scores how much worse the network gets when one unit has fewer bits."""

    name: str
    summary: str
    source: str
    """Publication."""
    needs: frozenset[Need]
    options: Mapping[str, Option]
    function: Callable[..., Scored | Sequence[Score]]
    package: str = ""
    """Name and version of the distribution that provides the criterion; empty if unknown."""

    @property
    def passes(self) -> str:
        """Passes of the images through the network that the criterion requires, as text."""
        return ", ".join(PASSES[need] for need in NEEDS if need in self.needs and need in PASSES) or "none"

    def is_cheap(self) -> bool:
        """Whether the criterion requires no further pass over the images after `analyze`."""
        return not self.needs & {"activations", "gradients", "labels"}

    def settings(self, given: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
        """Return the value of every option: the given value, or the default.

        Parameters
        ----------
        given : option name → value

        Returns
        -------
        dict of str to OptionValue

        Raises
        ------
        SettingsError
            An option does not exist, or its value has the wrong type.
        """
        values = {name: option.default for name, option in self.options.items()}
        for name, value in given.items():
            if name not in values:
                has = f"has only {', '.join(map(setting, values))}" if values else "has no options"
                raise SettingsError(f"criterion {self.name} {has}: drop {setting(name)}")
            if isinstance(values[name], float) and type(value) is int:
                value = float(value)
            if type(value) is not type(values[name]):
                wanted = type(values[name]).__name__
                raise SettingsError(f"criterion {self.name}: {setting(name)} {value!r} has to be of type {wanted}")
            values[name] = value
        return values

    def score(self, context: Context, options: Mapping[str, OptionValue]) -> Scored:
        """Score the units of a network.

        Parameters
        ----------
        context : the inputs of the criterion
        options : values of all options, from `settings`

        Returns
        -------
        Scored

        Raises
        ------
        SettingsError
            An option value is invalid, the criterion fails, or its result contains an invalid score.
        """
        try:
            found = self.function(context, **options)
            result = found if isinstance(found, Scored) else Scored(tuple(found))
            self._check(result.scores, context)
        except (InfoQError, MemoryError):
            raise
        except Exception as error:  # the code of another package can raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise SettingsError(f"criterion {self.name} failed: {reason}") from error
        return Scored(tuple(result.scores), tuple(result.observers))

    def _check(self, scores: Sequence[Score], context: Context) -> None:
        known = set(units_of(context.network))
        seen: set[tuple[Unit, int]] = set()
        for score in scores:
            what = f"criterion {self.name} returned {_shown(score)}"
            if not isinstance(score, Score) or score.unit not in known:
                raise SettingsError(f"{what}, which is not a score of a unit of this network")
            if score.bits not in context.bits or (score.unit, score.bits) in seen:
                raise SettingsError(f"{what}: wanted is one score a unit for each of {context.bits} bits")
            if not math.isfinite(score.value):
                raise SettingsError(f"{what}, whose value is not finite")
            seen.add((score.unit, score.bits))


def criterion(
    *, source: str, needs: Sequence[Need], name: str | None = None, options: Mapping[str, str] | None = None
) -> Callable[[Callable[..., Scored | Sequence[Score]]], Criterion]:
    """Turn a function of a `Context` into a criterion. Keyword-only parameters become the criterion's options.

    Parameters
    ----------
    source : publication
    needs : inputs that the function uses, see `NEEDS`
    name : name of the criterion; None: the function's name with hyphens
    options : help text of each option

    Returns
    -------
    callable
        Decorator that returns a `Criterion`.

    Raises
    ------
    TypeError
        A need is unknown, or an option has no default of type bool, int, float or str.
    """
    if unknown := set(needs) - set(NEEDS):
        raise TypeError(f"unknown need {unknown.pop()!r}: there are {', '.join(NEEDS)}")

    def make(function: Callable[..., Scored | Sequence[Score]]) -> Criterion:
        found = {}
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is not parameter.KEYWORD_ONLY:
                continue
            if not isinstance(parameter.default, bool | int | float | str):
                raise TypeError(f"option {parameter.name} needs a default of type bool, int, float or str")
            found[parameter.name] = Option(parameter.default, (options or {}).get(parameter.name, ""))
        called = name or function.__name__.replace("_", "-")
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        return Criterion(called, summary, source, frozenset(needs), found, function)

    return make


def _shown(score: object) -> str:
    """Describe a score in one line."""
    if not isinstance(score, Score) or not isinstance(score.unit, Unit):
        return repr(score)
    return f"{score.value} for {score.unit.kind} {score.unit.name} at {score.bits} bits"
